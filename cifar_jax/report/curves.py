"""The curves of a metric by epoch, for the runs of a group."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from cifar_jax.report.groups import SeedGroup

Curve = dict[int, float]
"""The value of a metric at each epoch."""


def curves(group: SeedGroup, name: str) -> list[Curve]:
    """Return the curve of a metric for each run that has measured the metric."""
    measured = [
        {row.epoch: value for row in run.rows if (value := getattr(row, name)) is not None}
        for run in group.distinct
    ]
    return [curve for curve in measured if curve]


def longest(measured: Sequence[Curve]) -> list[Curve]:
    """Return the longest curves, at the epochs that all of these curves contain.

    Shorter curves are left out, because the mean would jump at the epochs where they end.
    """
    last = max(max(curve) for curve in measured)
    kept = [curve for curve in measured if max(curve) == last]
    shared = sorted(set.intersection(*map(set, kept)))
    return [{epoch: curve[epoch] for epoch in shared} for curve in kept]


def mean_curve(measured: Sequence[Curve]) -> Curve:
    """Return the mean of the longest curves."""
    kept = longest(measured)
    return {epoch: statistics.fmean(curve[epoch] for curve in kept) for epoch in kept[0]}
