"""Kills, stops, damages and starves runs, and holds them to undisturbed ones: `make torture`.

Each run is disturbed, and started again until it is finished; then the arrays of its last
checkpoint, its metrics, log, test logits and result must equal those of the same run undisturbed,
bit for bit but for clocks.

runs.py       the runs, each a process of its own whose moment is known
compare.py    in what a run differs from the undisturbed one
bench.py      the undisturbed runs, and what has become of the others
faults.py     what is done to runs
__main__.py   the command line and the table
"""

import os
import tempfile
from pathlib import Path

SCRATCH = Path(tempfile.mkdtemp(prefix="cifar-jax-torture-"))
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(SCRATCH / "xla"))
os.environ |= {  # read when JAX is imported
    "JAX_PLATFORMS": "cpu",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "CIFAR_JAX_CACHE": str(SCRATCH / "data"),
    "TF_CPP_MIN_LOG_LEVEL": "2",
}
