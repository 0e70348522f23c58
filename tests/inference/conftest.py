"""Runs that nobody trained: a folder as a run leaves it, with weights from a seed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import pytest

from cifar_jax import models
from cifar_jax.config import Config, Data, Model, Optimizer, flatten
from cifar_jax.files import write_json
from cifar_jax.runs.checkpoints import Checkpoints


class State(NamedTuple):
    step: jax.Array
    params: Any
    batch_stats: Any


@pytest.fixture(scope="session")
def make_run() -> Callable[..., Path]:
    """A run of CIFAR-10 at step 7, without a model card; an older one is at step 3."""

    def make(folder: Path, name: str, **options: Any) -> Path:
        config = Config(
            model=Model(name=name),
            epochs=1,
            batch_size=8,
            optimizer=Optimizer(),
            data=Data(**options),
        )
        with Checkpoints(folder / "checkpoints", keep=2) as checkpoints:
            for step in (3, 7):
                variables = models.init_variables(models.create(name), jax.random.key(step))
                state = State(
                    jnp.int32(step), variables["params"], variables.get("batch_stats", {})
                )
                checkpoints.save(state, validation_accuracy=50 - step)
        identity = {"experiment": name, "seed": 0, "overrides": {}, "config": flatten(config)}
        write_json(folder / "config.json", identity)
        return folder

    return make


@pytest.fixture(scope="session")
def basic(make_run: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of `basic`, to read only."""
    return make_run(tmp_path_factory.mktemp("runs") / "basic", "basic")


@pytest.fixture(scope="session")
def inception(make_run: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of `net-inception`, which has every kind of layer but attention."""
    return make_run(tmp_path_factory.mktemp("runs") / "inception", "net-inception")
