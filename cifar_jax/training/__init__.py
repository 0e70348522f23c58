"""Train a run: its setup, the train step, the compilation and the training loop."""
