"""Training: the setup of a run, the train step, its compilation, and the training loop."""
