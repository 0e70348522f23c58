"""The files of a run: its folder, checkpoints, metrics, result and record."""
