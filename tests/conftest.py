"""Fixtures that all tests share."""

# JAX reads environment variables when it is imported. `surroundings` sets these variables.
import surroundings  # noqa: F401, I001

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.experimental
import pytest

# Before JAX 0.8, `enable_x64` is in `jax.experimental`.
if not hasattr(jax, "enable_x64"):
    jax.enable_x64 = jax.experimental.enable_x64  # pyright: ignore

collect_ignore_glob = ["*/conftest.py", "fixtures/*"]  # These files contain no tests.

pytest.register_assert_rewrite("short_runs")

from short_runs import EPOCHS, train  # noqa: E402

from cifar_jax.config import Config, Data, Model, Optimizer, Train, override  # noqa: E402

# Tests interrupt runs with signals. Restore the default actions, because a shell's background job
# ignores SIGINT, and a program under `nohup` ignores SIGHUP.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="session")
def make_config() -> Callable[..., Config]:
    """Return a function that makes the config of a short run: `basic` on 256 images of `digits`.

    Keyword arguments are settings. A double underscore replaces each dot in a setting's name:
    `make_config(epochs=3, optimizer__lr=0.1)`.
    """
    small = Config(
        model=Model(name="basic"),
        epochs=2,
        batch_size=32,
        optimizer=Optimizer(name="sgd", lr=0.05),
        data=Data(dataset="digits", train_images=256),
        train=Train(devices=1),
    )

    def make(**settings: Any) -> Config:
        texts = [f"{name.replace('__', '.')}={value}" for name, value in settings.items()]
        return override(small, texts)

    return make


@pytest.fixture(scope="session")
def config(make_config: Callable[..., Config]) -> Config:
    """Config of a short run that changes every part of the train state."""
    return make_config(
        epochs=EPOCHS,
        optimizer__name="adam",
        optimizer__lr=1e-3,
        schedule__name="plateau",
        schedule__patience=0,
        schedule__threshold=0.9,
        data__train_images="none",
        data__crop_padding=1,
        train__log_every=16,
    )


@pytest.fixture(scope="session")
def finished(config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of an uninterrupted run with the settings of the fixture `config`."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    train(config, folder, overrides={"optimizer.lr": 1e-3})
    return folder


@pytest.fixture(params=["cpu", "accelerator"])
def each_platform(request: pytest.FixtureRequest) -> Iterator[None]:
    """Run the test twice: with the operations for CPUs and with the operations for accelerators.

    Tests may choose other platforms, such as "cpu-onednn", by indirect parametrization.
    """
    from cifar_jax import ops

    with ops.force_platform("default" if request.param == "accelerator" else request.param):
        yield
