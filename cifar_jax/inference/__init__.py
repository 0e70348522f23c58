"""Use of a trained model: load, predict, evaluate, export, and import from PyTorch."""
