"""Disturb training runs, and compare them with undisturbed runs: `make torture`.

Runs are killed and stopped, their files are damaged, and their disk is filled. A disturbed run is
started again until it is finished. The last checkpoint, metrics, log, outputs and result of the run
must then equal the files of an undisturbed run, except for times.

runs.py       the runs, each in its own process
compare.py    compares two finished runs
trials.py     one trial: a disturbed run, its faults and their outcomes
faults.py     the faults
__main__.py   the command line and the table
"""

import os
import tempfile
from pathlib import Path

SCRATCH = Path(tempfile.gettempdir(), f"cifar-jax-torture-{os.getpid()}")
CACHE = SCRATCH / "xla"
"""Folder for compiled programs."""

os.environ |= {  # JAX reads these variables when it is imported.
    "JAX_PLATFORMS": "cpu",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "CIFAR_JAX_CACHE": str(SCRATCH / "data"),
    "TF_CPP_MIN_LOG_LEVEL": "2",
}
