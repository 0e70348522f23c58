"""Use trained models: load, predict, evaluate, export, and import from PyTorch."""
