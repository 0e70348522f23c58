"""The suite's surroundings, to be set before JAX is imported.

Eight virtual CPU devices, so that sharding is real; caches of our own, so that neither a user's
cache nor an older build decides what a test sees. Compiled programs are shared within a session,
under xdist by all of its workers: most of the short runs need the same few.
"""

import os
import tempfile

if "PYTEST_XDIST_WORKER" not in os.environ:  # the workers inherit all this
    _own = tempfile.TemporaryDirectory(prefix="cifar-jax-tests-")  # goes when the process does
    _scratch = os.environ.get("CIFAR_JAX_TESTS_SCRATCH", _own.name)
    os.environ |= {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8",
        "JAX_COMPILATION_CACHE_DIR": f"{_scratch}/xla",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
        "CIFAR_JAX_CACHE": f"{_scratch}/data",
    }
