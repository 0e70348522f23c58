"""The request for a training run: its experiment, settings, seed and folder."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from cifar_jax import config as configs
from cifar_jax.catalog import CustomParts
from cifar_jax.config import Config
from cifar_jax.runs.schemas import RunIdentity
from cifar_jax.training.freezing import Pretrained


class RunRequest(NamedTuple):
    """A run to train: an experiment with its settings, a seed and a folder."""

    experiment: str
    config: Config
    seed: int
    workdir: Path
    custom: CustomParts = CustomParts()
    """Custom parts that the experiment file defines."""
    overrides: Mapping[str, Any] = {}
    """Settings that differ from the experiment file, by dotted name."""
    load_weights: Callable[[], Pretrained] | None = None
    """Function that loads the trained network named by the setting `train.init_from`. None: random
    weights."""
    fresh: bool = False
    """Whether to delete a run that already exists in the folder."""
    extend: bool = False
    """Whether an existing run in the folder may be extended to more epochs."""
    evaluate_test: bool = True
    """Whether to evaluate the test images at the end. If False, the run has no result."""

    def identity(self) -> RunIdentity:
        """Return the experiment, seed and settings of the run, which `config.json` stores.

        A folder that contains another run is refused.
        """
        return RunIdentity(
            experiment=self.experiment,
            seed=self.seed,
            overrides=dict(self.overrides),
            settings=configs.flatten(self.config),
        )
