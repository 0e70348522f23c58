"""One run as its folder or its record tells of it, held to what its experiment is today."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from cifar_jax import catalog, config
from cifar_jax.config import Config
from cifar_jax.errors import UserError

_CIFAR10 = "cifar10"
# The fingerprint of the official CIFAR-10 in the order of tfds and of our own preparation: results
# of before `data_official` came have nothing else.
_OFFICIAL_SHA256 = "85f234f317270aaab303f6cd760fa2a4ee3ecc150bc1cfe572e79680b311b8c4"


def is_official(digest: str | None, told: bool | None) -> bool:
    """Whether images are the official CIFAR-10's, by what a run tells of them: it does not say so
    itself where it is of before that was known."""
    return digest == _OFFICIAL_SHA256 if told is None else told


@dataclass(frozen=True)
class Run:
    """One run, finished or not."""

    path: Path
    """Its folder, or its record."""
    experiment: str
    seed: int
    settings: Mapping[str, Any]
    """Every setting by dotted name."""
    overrides: Mapping[str, Any]
    """Those that were given beside the experiment's file."""
    result: Mapping[str, Any] | None
    """What result.json holds, once the run is finished."""
    rows: Sequence[Mapping[str, Any]] = field(default=(), repr=False)
    """Metrics, one row an epoch."""
    starts: Sequence[Mapping[str, Any]] = field(default=(), repr=False)
    """Where each of its starts ran: commit, versions, device, machine."""
    outputs: Path | None = None
    """The outputs for the test images, in a record of a finished run."""
    data: str | None = None
    """The digest of its images; None where it is not told, as in runs of before model.json came."""
    data_official: bool | None = None
    """Whether they are the official CIFAR-10's, whatever their order; None where it is not told."""

    @property
    def epochs(self) -> int:
        """As many as were asked for; as many as it had, where it is finished and was to fit into
        `train.max_minutes`."""
        if self.result and self.settings.get("train.max_minutes"):
            return self.result["epochs"]
        return self.settings["epochs"]

    @cached_property
    def identity(self) -> Mapping[str, Any]:
        """The settings that make it the run that it is."""
        try:
            return config.identity(self.settings)
        except UserError:
            return self.settings  # of a later version: compared as they stand

    @cached_property
    def changes(self) -> dict[str, Any]:
        """Settings that differ from the experiment's today, however they were given.

        The file may have changed since the run: then the run is no longer of this experiment. Of an
        experiment that is not in this package only what was overridden is known.
        """
        experiment = experiments().get(self.experiment)
        if experiment is None:
            return dict(self.overrides)
        known, own = config.flatten(experiment), config.identity(experiment)
        return {
            name: value
            for name, value in self.identity.items()
            if name not in known or own.get(name, value) != value
        }

    @property
    def halvings(self) -> int:
        """How often it went back and on at half the learning rate."""
        return max(told.get("halvings", 0) for told in (*self.rows, self.result or {}))

    @property
    def official(self) -> bool:
        """Whether its images are the official CIFAR-10's, as far as it tells."""
        return is_official(self.data, self.data_official)

    @property
    def tells_its_images(self) -> bool:
        """Whether anything is known of them: a result that says nothing is of unknown images."""
        return self.result is not None or self.data is not None

    @property
    def other_data(self) -> bool:
        """Whether what it calls CIFAR-10 is not: a subset, a copy as JPEG, or unknown images."""
        return (
            self.tells_its_images
            and self.settings["data.dataset"] == _CIFAR10
            and not self.official
        )


def key(settings: Mapping[str, Any]) -> str:
    """The same text for the same settings."""
    return json.dumps(dict(settings), sort_keys=True)


@cache
def experiments() -> dict[str, Config]:
    """The experiments that come with this package, by name, in the paper's order."""
    return {name: catalog.load(name).config for name in catalog.names()}
