"""The description of one run, read from its folder or from its record."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Self

from cifar_jax import catalog, config
from cifar_jax.config import Config
from cifar_jax.errors import UserError
from cifar_jax.runs.schemas import MetricsRow, ModelCard, Result, Session


@dataclass(frozen=True)
class RunRecord:
    """A finished or unfinished run, read from its folder or from its record."""

    path: Path
    """The run folder, or the JSON file of a record."""
    experiment: str
    seed: int
    settings: Mapping[str, Any]
    """Every setting by dotted name."""
    overrides: Mapping[str, Any]
    """Settings that differ from the experiment file at the time of the run, by dotted name."""
    result: Result | None
    """Result of the run. None if the run is not finished."""
    rows: Sequence[MetricsRow]
    sessions: Sequence[Session]
    outputs: Path | None = None
    """File with the logits of the test images. None if there is no such file."""
    data_sha256: str | None = None
    """Digest of the images. None if the run stopped before it wrote its model card."""
    data_official: bool | None = None
    """Whether the images are the official CIFAR-10. None if this is unknown."""
    card: ModelCard | None = None
    """Model card. None for old records, and if the run stopped before it wrote its model card."""
    validation: Path | None = None
    """File with the logits of the validation images. None if there is no such file."""

    def __post_init__(self) -> None:
        if not isinstance(self.settings.get("epochs"), int):
            raise UserError(
                f"{self.path} is damaged: the setting epochs is missing or is not a whole number"
            )

    @classmethod
    def finished(
        cls,
        path: Path,
        result: Result,
        rows: Sequence[MetricsRow],
        outputs: Path | None,
        card: ModelCard | None = None,
    ) -> Self:
        """Return the finished run that `result` describes."""
        return cls(
            path,
            result.experiment,
            result.seed,
            result.settings,
            result.overrides,
            result,
            rows,
            result.sessions,
            outputs,
            result.data_sha256,
            result.data_official,
            card,
            validation=outputs,
        )

    @property
    def epochs(self) -> int:
        """Number of epochs in the settings."""
        return self.settings["epochs"]

    @cached_property
    def identity(self) -> Mapping[str, Any]:
        """The settings that determine the result of the run, by dotted name."""
        try:
            return config.identity(self.settings)
        except UserError:  # The settings are of another version of the package.
            return self.settings

    @cached_property
    def changes(self) -> dict[str, Any]:
        """Settings that differ from the current experiment file, by dotted name.

        The experiment file may have changed since the run. For an experiment that is not part of
        the package, these are the overrides of the run. Experiments of the package have no custom
        parts. If the run has custom parts, `code` is their digest.
        """
        experiment = experiments().get(self.experiment)
        if experiment is None:
            return dict(self.overrides)
        known, current = config.flatten(experiment), config.identity(experiment)
        changed = {
            name: value
            for name, value in self.identity.items()
            if name not in known or current.get(name, value) != value
        }
        return changed | ({"code": self.code} if self.code else {})

    @property
    def code(self) -> str | None:
        """Digest of the custom parts, 8 hexadecimal digits. None if all parts are the package's."""
        if self.card is None or self.card.code is None:
            return None
        code = self.card.code
        text = code.sha256 + json.dumps(code.modules, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:8]

    @property
    def has_other_images(self) -> bool:
        """Whether the data set is called `cifar10`, but its images are not the official ones."""
        return self.settings.get("data.dataset") == "cifar10" and self.data_official is False


@cache
def experiments() -> dict[str, Config]:
    """Return the configs of the package's experiments by name, in the order of `catalog.names`."""
    return {name: catalog.load(name).config for name in catalog.names()}
