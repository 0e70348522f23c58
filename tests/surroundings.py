"""Set environment variables for the tests. Import this module before JAX.

JAX gets eight virtual CPU devices on which tests can shard arrays. The caches are in a temporary
folder. Files of the user or of earlier versions therefore do not affect the tests. All pytest-xdist
workers share the cache of compiled programs, because most short runs need the same programs.
"""

import os
import tempfile

# Worker processes of pytest-xdist inherit the variables.
if "PYTEST_XDIST_WORKER" not in os.environ:
    # Python deletes this folder when the process ends.
    _temporary = tempfile.TemporaryDirectory(prefix="cifar-jax-tests-")
    _scratch = os.environ.get("CIFAR_JAX_TESTS_SCRATCH", _temporary.name)
    os.environ |= {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8",
        "JAX_COMPILATION_CACHE_DIR": f"{_scratch}/xla",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
        "CIFAR_JAX_CACHE": f"{_scratch}/data",
    }
