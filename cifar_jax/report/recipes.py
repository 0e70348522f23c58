"""Better recipes beside what they are to be compared with: the paper's own, and peers elsewhere."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from cifar_jax.errors import UserError
from cifar_jax.files import read_json
from cifar_jax.report.groups import SeedGroup, papers_best
from cifar_jax.runs import schema
from cifar_jax.runs.run import experiments

PEERS = "peers.json"
"""Beside the records: a list of what others reach elsewhere, with what `Peer` has."""


class Pair(NamedTuple):
    """A better recipe, and the paper's best for the same network."""

    better: SeedGroup
    faithful: SeedGroup | None
    """Run or not; none where the network is not the paper's."""


class Peer(NamedTuple):
    """A measurement of another's code, made outside this project."""

    name: str
    accuracy: float
    """On the test images, in percent."""
    minutes: float
    """Wall time of the whole command."""
    machine: str
    source: str
    """What was run, and how."""
    command: str
    """That gave it."""


class Point(NamedTuple):
    """A group of runs, or a peer, in the figure of accuracy against wall time."""

    name: str
    kind: str
    """One of the three below."""
    minutes: float
    accuracy: float
    spread: float
    """Sample standard deviation over the seeds; 0 of one alone."""
    accelerated: bool = False
    """On a GPU or TPU, some of it or all: its time is no CPU's."""


PAPERS, BETTER, OTHERS = "the paper's recipe", "better recipe", "others' code"
_PEER: schema.Fields = {
    "name": str,
    "accuracy": (int, float),
    "minutes": (int, float),
    "machine": str,
    "source": str,
    "command": str,
}


def pairs(groups: Sequence[SeedGroup]) -> list[Pair]:
    """The better recipes among `groups`, in the order of the paper's networks; others' at last."""
    faithful = {group.experiment: group for group in groups if group.paper}
    order = list(experiments())
    found = []
    for group in groups:
        if group.better and group.config:
            best = papers_best(group.config.model.name)
            found.append((order.index(best) if best else len(order), group, best))
    found.sort(key=lambda entry: (entry[0], entry[1].experiment))
    return [Pair(group, faithful.get(best) if best else None) for _, group, best in found]


def points(groups: Sequence[SeedGroup], peers: Sequence[Peer] = ()) -> list[Point]:
    """A point each group of the paper's experiments and of better recipes that has a finished run,
    the mean of its seeds, and each peer."""
    found = []
    for group in groups:
        if (accuracies := group.measured()) and (group.paper or group.better):
            minutes = statistics.fmean(group.measured("wall_seconds")) / 60
            spread = statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0
            kind = PAPERS if group.paper else BETTER
            mean = statistics.fmean(accuracies)
            starts = [start for run in group.finished for start in run.starts]
            accelerated = any(start["device"].get("platform", "cpu") != "cpu" for start in starts)
            found.append(Point(group.experiment, kind, minutes, mean, spread, accelerated))
    return found + [Point(peer.name, OTHERS, peer.minutes, peer.accuracy, 0.0) for peer in peers]


def papers_accuracies() -> dict[str, float]:
    """The best that the paper reports for each of its networks."""
    found = {}
    for config in experiments().values():
        best = papers_best(config.model.name)
        if best and (paper := experiments()[best].paper):
            found[config.model.name] = paper.test_accuracy
    return found


def read_peers(path: Path) -> list[Peer]:
    """What the file `path` tells of peers; nothing where there is no such file.

    Raises:
      UserError: it cannot be read, or lacks something of a peer.
    """
    if not path.exists():
        return []
    told = read_json(path)
    if not isinstance(told, list):
        raise UserError(f"{path} holds no list of peers")
    checked = [schema.checked(entry, _PEER, path) for entry in told]
    return [Peer(**{name: entry[name] for name in _PEER}) for entry in checked]
