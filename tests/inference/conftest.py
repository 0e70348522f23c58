"""Fixtures of the inference tests. Weights are random, so no training is needed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import pytest

from cifar_jax import cli, models
from cifar_jax.config import Config, Model, Optimizer, flatten
from cifar_jax.data import cifar10
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
    """Return a function that writes the folder of an unfinished run with two checkpoints.

    The first checkpoint (epoch 1, step 3) has the best validation accuracy. The last checkpoint is
    of epoch 2, step 7. The weights at step N are the initial weights for seed N.
    """

    def make(folder: Path, name: str, dataset: str = "cifar10", **card: Any) -> Path:
        config = Config(model=Model(name=name), epochs=2, batch_size=8, optimizer=Optimizer())
        settings = flatten(config) | {"data.dataset": dataset}
        identity = RunIdentity(experiment=name, seed=0, overrides={}, settings=settings)
        fields = {"experiment": name, "seed": 0, "model": {"name": name, "num_classes": 10}}
        fields |= {"precision": "float32", "classes": cifar10.CLASSES}
        fields |= {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}
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
    """Folder of a run of the model `basic`. Tests must not change the folder."""
    return make_run(tmp_path_factory.mktemp("runs") / "basic", "basic")


@pytest.fixture
def call(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, str, str]]:
    """Return a function that runs a `cifar-jax` command in an empty folder.

    The function returns the exit code, standard output and standard error.
    """
    monkeypatch.chdir(tmp_path)

    def call(*words: object) -> tuple[int, str, str]:
        code = cli.run(list(map(str, words)))
        return code, *capsys.readouterr()

    return call
