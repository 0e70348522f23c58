"""Run folders with random weights, so that no test has to train."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import pytest

from cifar_jax import models
from cifar_jax.config import Config, Data, Model, Optimizer, flatten
from cifar_jax.data import cifar10
from cifar_jax.inference.torch_weights import CIFAR10_MEAN, CIFAR10_STD
from cifar_jax.runs.checkpoints import Checkpoints
from cifar_jax.runs.folder import open_run_folder
from cifar_jax.runs.schemas import ModelCard, RunIdentity


class State(NamedTuple):
    step: jax.Array
    epoch: jax.Array
    params: Any
    batch_stats: Any


@pytest.fixture(scope="session")
def make_run() -> Callable[..., Path]:
    """Write an unfinished run: epoch 1 at step 3, which is the best, and epoch 2 at step 7.

    The weights of step N are those of seed N.
    """

    def make(folder: Path, name: str, **card: Any) -> Path:
        config = Config(
            model=Model(name=name), epochs=2, batch_size=8, optimizer=Optimizer(), data=Data()
        )
        identity = RunIdentity(experiment=name, seed=0, overrides={}, settings=flatten(config))
        fields = {
            "experiment": name,
            "seed": 0,
            "model": {"name": name, "num_classes": 10},
            "precision": "float32",
            "classes": cifar10.CLASSES,
            "mean": CIFAR10_MEAN,
            "std": CIFAR10_STD,
        }
        with (
            open_run_folder(folder, identity, fresh=False) as run,
            Checkpoints(run.checkpoints, keep=2) as checkpoints,
        ):
            run.write_card(ModelCard.model_validate(fields | card))
            for epoch, step in ((1, 3), (2, 7)):
                variables = models.init_variables(models.create(name), jax.random.key(step))
                batch_stats = variables.get("batch_stats", {})
                state = State(jnp.int32(step), jnp.int32(epoch), variables["params"], batch_stats)
                checkpoints.save(state, end_of_epoch=True, validation_accuracy=50 - step)
        return folder

    return make


@pytest.fixture(scope="session")
def basic(make_run: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of `basic`. Tests only read it."""
    return make_run(tmp_path_factory.mktemp("runs") / "basic", "basic")


@pytest.fixture(scope="session")
def inception(make_run: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of `net-inception`, which has every kind of layer except attention."""
    return make_run(tmp_path_factory.mktemp("runs") / "inception", "net-inception")
