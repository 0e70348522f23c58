"""Draw the figure of test accuracy by training time, one panel for CPUs and one for GPUs."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter
from matplotlib.transforms import Bbox

from cifar_jax.report.groups import SeedGroup
from cifar_jax.report.plots import GREY, INK, TRAIN, VALIDATION
from cifar_jax.report.recipes import Peer
from cifar_jax.report.table import device, wall_seconds

_STYLES = {
    "the paper's recipe": (TRAIN, "o"),
    "better recipe": (VALIDATION, "D"),
    "other people's code": (GREY, "s"),
}


_PLACES = (
    *((7, 0, "left"), (-7, 0, "right"), (0, 10, "center"), (0, -10, "center")),
    *((5, 9, "left"), (5, -9, "left"), (-5, 9, "right"), (-5, -9, "right"), (5, -16, "left")),
)
"""Possible positions of a name next to its marker. A position is a horizontal and a vertical offset
in 1/72 inch, and a horizontal alignment."""


class Point(NamedTuple):
    """A measurement in the figure."""

    label: str
    kind: str
    """A key of `_STYLES`."""
    minutes: float
    """Training time of one run in minutes: mean over the runs on the first machine."""
    accuracy: float
    """Test accuracy in percent: mean over the seeds."""
    is_gpu: bool
    machine: str
    """Machine on which `minutes` was measured."""


def points(groups: Sequence[SeedGroup], peers: Sequence[Peer]) -> list[Point]:
    """Return a point for each group with results, and for each measurement of other code."""
    measured = []
    for group in groups:
        seconds = wall_seconds(group)
        if (results := group.results) and seconds is not None:
            measured.append(
                Point(
                    group.experiment,
                    "the paper's recipe" if group.paper else "better recipe",
                    seconds / 60,
                    statistics.fmean(group.measured()),
                    results[0].device.platform != "cpu",
                    device(group.finished[0].sessions[0]),
                )
            )
    for peer in peers:
        name = peer.name.partition(" (")[0]
        kind = "other people's code"
        measured.append(Point(name, kind, peer.minutes, peer.accuracy, False, peer.machine))
    return measured


def draw(measured: Sequence[Point]) -> Figure:
    """Return the figure. The time axes are logarithmic and have different ranges.

    The accuracy axis is logarithmic in the error, which spreads the accuracies near 95 %.
    """
    figure = Figure(figsize=(10.3, 4.4))
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(1.6, 1))
    cpu, gpu = ([p for p in measured if p.is_gpu == is_gpu] for is_gpu in (False, True))
    _panel(left, "two CPU cores", cpu, 0.25)
    _panel(right, "NVIDIA H200, shared by several runs", gpu, 0.4)
    left.set_ylabel("test accuracy, %")
    handles = [
        Line2D([], [], lw=0, color=color, marker=marker, ms=6, label=kind)
        for kind, (color, marker) in _STYLES.items()
    ]
    figure.legend(handles=handles, loc="upper right", ncols=3, fontsize=9)
    figure.tight_layout(rect=(0, 0, 1, 0.94))
    occupied: list[Bbox] = []
    for axes, shown in ((left, cpu), (right, gpu)):
        _labels(axes, shown, occupied)
    return figure


def _panel(axes: Axes, title: str, measured: Sequence[Point], space: float) -> None:
    """Draw a panel. `space` is the fraction of the width to the right of the last point.

    Points of the most frequent machine are filled. Points of other machines are hollow.
    """
    machines = Counter(point.machine for point in measured).most_common()
    for point in measured:
        color, marker = _STYLES[point.kind]
        fill = "full" if point.machine == machines[0][0] else "none"
        axes.plot(
            point.minutes, point.accuracy, marker, color=color, ms=6, zorder=3, fillstyle=fill
        )
    if len(machines) > 1:
        title += " (hollow: another processor)"
    axes.set_xscale("log")
    times = [point.minutes for point in measured] or [1.0]
    low, last = min(times) / 1.5, max(times)
    high = last * (last / low) ** (space / (1 - space))
    axes.set_xlim(low, high)
    axes.set_yscale("function", functions=(_height, _accuracy))
    axes.set_ylim(58, 96)
    axes.set_yticks([60, 70, 80, 85, 90, 92, 94, 95])
    axes.set_xlabel("minutes of training")
    axes.set_title(title, loc="left", weight="bold")
    axes.set_xticks([tick for tick in (1, 2, 5, 10, 20, 50, 100, 200, 500) if low < tick < high])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda minute, _: f"{minute:g}"))
    axes.minorticks_off()


def _height(accuracy: np.ndarray) -> np.ndarray:
    return -np.log(np.maximum(100 - accuracy, 1e-3))


def _accuracy(height: np.ndarray) -> np.ndarray:
    return 100 - np.exp(-height)


def _labels(axes: Axes, measured: Sequence[Point], occupied: list[Bbox]) -> None:
    """Write the name of each point at the first of `_PLACES` that does not overlap anything.

    `occupied` lists the areas with names or points, in pixels. The function adds the names and
    points of the panel `axes` to this list.
    """
    renderer = FigureCanvasAgg(axes.get_figure(root=True)).get_renderer()
    for point in measured:
        x, y = axes.transData.transform((point.minutes, point.accuracy))
        occupied.append(Bbox.from_bounds(x - 5, y - 5, 10, 10))
    for point in sorted(measured, key=lambda point: -point.accuracy):
        for dx, dy, side in _PLACES:
            text = axes.annotate(
                point.label,
                (point.minutes, point.accuracy),
                (dx, dy),
                textcoords="offset points",
                fontsize=8.5,
                color=INK,
                ha=side,
                va="center",
            )
            box = text.get_window_extent(renderer)
            if not any(box.overlaps(other) for other in occupied) or (dx, dy, side) == _PLACES[-1]:
                occupied.append(box)
                break
            text.remove()
