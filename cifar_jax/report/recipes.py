"""Better recipes next to the paper's best for the same network, and other people's results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from cifar_jax.report.groups import SeedGroup, best_paper_experiment
from cifar_jax.runs.run import experiments
from cifar_jax.runs.schemas import Stored, read_list


class Pair(NamedTuple):
    """A better recipe, and the paper's best for the same network."""

    better: SeedGroup
    faithful: SeedGroup | None
    """None if the network is not from the paper."""


class Peer(Stored):
    """An entry of `peers.json`: a measurement of other people's code."""

    name: str
    accuracy: float
    """On the test images, in percent."""
    minutes: float
    """Wall time of the whole command."""
    machine: str
    source: str
    """What was run, and how, in full sentences."""
    command: str


def pairs(groups: Sequence[SeedGroup]) -> list[Pair]:
    """Return the better recipes in the order of the paper's networks, other networks last."""
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
    """Return the entries of a `peers.json`; none if the file is missing.

    Raises:
      UserError: the file cannot be read, or an entry is incomplete.
    """
    return read_list(path, Peer, "Correct the entry.")
