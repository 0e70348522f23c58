"""PyTorch recipes of other projects, for comparison with `speedrun-92` and `speedrun-94`."""

import time

STARTED = time.perf_counter()
"""Time at the start of the process, before PyTorch is imported."""
