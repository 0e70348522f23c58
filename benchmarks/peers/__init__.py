"""Recipes of other projects in PyTorch, to compare `speedrun-92` and `speedrun-94` with."""

import time

STARTED = time.perf_counter()
"""Time at the start of the process, before PyTorch is imported."""
