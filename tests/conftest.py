"""The suite's surroundings, set before JAX is imported.

Eight virtual CPU devices, so that sharding is real; caches of our own, so that neither a user's
cache nor an older build decides what a test sees. Compiled programs are shared within a session,
under xdist by all of its workers: most runs of `test_fit` need the same few.
"""

import os
import signal
import tempfile

if "PYTEST_XDIST_WORKER" not in os.environ:  # the workers inherit all this
    _scratch = tempfile.TemporaryDirectory(prefix="cifar-jax-tests-")  # goes when the process does
    os.environ |= {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8",
        "JAX_COMPILATION_CACHE_DIR": f"{_scratch.name}/xla",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
        "CIFAR_JAX_CACHE": f"{_scratch.name}/data",
    }

from collections.abc import Callable
from typing import Any

import pytest

from cifar_jax import config

# A suite in the background of a shell has it ignored, and the tests interrupt what they run.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def make_config() -> Callable[..., config.Config]:
    """A config of seconds, `basic` on 256 digits, with `--set` settings by name on top of it.

    Dots are written as double underscores: `make_config(epochs=3, optimizer__lr=0.1)`.
    """
    small = config.Config(
        model=config.Model(name="basic"),
        epochs=2,
        batch_size=32,
        optimizer=config.Optimizer(name="sgd", lr=0.05),
        data=config.Data(dataset="digits", train_images=256),
        train=config.Train(devices=1),
    )

    def make(**settings: Any) -> config.Config:
        texts = [f"{name.replace('__', '.')}={value}" for name, value in settings.items()]
        return config.override(small, texts)

    return make
