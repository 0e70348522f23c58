"""What a training run is asked to do."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from cifar_jax import config as configs
from cifar_jax.catalog import CustomParts
from cifar_jax.config import Config
from cifar_jax.runs.schemas import RunIdentity


class RunRequest(NamedTuple):
    """A run to train: an experiment with its settings, a seed and a folder."""

    experiment: str
    config: Config
    seed: int
    workdir: Path
    custom: CustomParts = CustomParts()
    """Parts that the experiment file defines."""
    overrides: Mapping[str, Any] = {}
    """Settings that differ from the experiment file's, by dotted name."""
    load_weights: Callable[[], Mapping[str, Any]] | None = None
    """Returns the variables that `train.init_from` names."""
    fresh: bool = False
    """Delete the run that is in the folder first."""
    extend: bool = False
    """Let the run in the folder continue to more epochs than it was started with."""

    def identity(self) -> RunIdentity:
        """Return what `config.json` holds. A folder with another identity is refused."""
        return RunIdentity(
            experiment=self.experiment,
            seed=self.seed,
            overrides=dict(self.overrides),
            settings=configs.flatten(self.config),
        )
