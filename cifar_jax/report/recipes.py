"""Pair better recipes with the paper's experiments, and read the results of other people's code."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from cifar_jax.report.groups import SeedGroup, best_paper_experiment
from cifar_jax.runs.run import experiments
from cifar_jax.runs.schemas import Stored, read_list


class Pair(NamedTuple):
    """A better recipe, and the paper's best experiment with the same network."""

    better: SeedGroup
    """The better recipe."""
    faithful: SeedGroup | None
    """The paper's best experiment; None if the network is not from the paper."""


class Peer(Stored):
    """An entry of `peers.json`: a measurement of other people's code."""

    name: str
    accuracy: float
    """Accuracy on the test images in percent."""
    minutes: float
    """Wall time of the whole command in minutes."""
    machine: str
    source: str
    """Full sentences that state which code was run, and how."""
    command: str


def pairs(groups: Sequence[SeedGroup]) -> list[Pair]:
    """Return a pair for each better recipe, in the order of the paper's networks.

    Recipes for networks that are not from the paper come last.
    """
    faithful = {group.experiment: group for group in groups if group.paper}
    order = list(experiments())
    found = []
    for group in groups:
        if group.is_better_recipe and group.config:
            best = best_paper_experiment(group.config.model.name)
            place = order.index(best) if best else len(order)
            found.append((place, group.experiment, Pair(group, faithful.get(best or ""))))
    return [pair for *_, pair in sorted(found, key=lambda entry: entry[:2])]


def read_peers(path: Path) -> list[Peer]:
    """Return the entries of a `peers.json`, or an empty list if the file is missing.

    Raises:
      UserError: the file cannot be read, or an entry is incomplete.
    """
    return read_list(path, Peer, "Correct the entry.")
