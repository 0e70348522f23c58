"""The figure of test accuracy against wall time: the paper's recipes, better ones, and peers."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from matplotlib import figure as mpl_figure
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg, RendererAgg
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from matplotlib.transforms import Bbox

from cifar_jax.report import style
from cifar_jax.report.recipes import BETTER, OTHERS, PAPERS, Point, papers_accuracies
from cifar_jax.report.style import DASHED, GREY, INK, STYLE, TRAIN, VALIDATION, Figure

TITLE = "Test accuracy (%) against wall time"
_LOOKS = {PAPERS: ("o", TRAIN), BETTER: ("D", VALIDATION), OTHERS: ("s", INK)}
"""Marker and color of each kind."""
_ACCURACIES = (10, 20, 30, 40, 50, 60, 70, 80, 85, 90, 92, 94, 95, 96, 97, 98, 99)
_MINUTES = (0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3000, 10_000, 30_000)
_Side = tuple[tuple[int, int], str, str]
_SIDES: list[_Side] = [
    ((7, 0), "left", "center"),
    ((-7, 0), "right", "center"),
    *(
        side
        for away in (6, 14, 22)
        for side in (
            ((0, away), "center", "bottom"),
            ((0, -away), "center", "top"),
            ((6, away - 1), "left", "bottom"),
            ((6, 1 - away), "left", "top"),
            ((-6, away - 1), "right", "bottom"),
            ((-6, 1 - away), "right", "top"),
        )
    ),
]
"""Where a name may be, seen from its point: offset, and which of its edges is there."""


def svg(points: Sequence[Point], description: str) -> bytes:
    """The figure as an SVG file that holds `description`."""
    with mpl.rc_context(STYLE):
        return style.svg(_drawn(points), description)


def figure(points: Sequence[Point]) -> Figure:
    """The figure for a report."""
    with mpl.rc_context(STYLE):
        return Figure("wall-time.png", TITLE, style.png(_drawn(points)))


def _drawn(points: Sequence[Point]) -> mpl_figure.Figure:
    fig = mpl_figure.Figure(figsize=(9.6, 6))
    canvas = FigureCanvasAgg(fig)  # measures text, whatever the figure is saved as
    axes = fig.subplots()
    fig.subplots_adjust(left=0.065, right=0.79, bottom=0.105, top=0.87)
    papers = papers_accuracies()
    accuracies = [*papers.values(), *(point.accuracy for point in points)]
    # As the share of wrong images falls: from 90 to 95 % is as far as from 60 to 80.
    axes.set_yscale("function", functions=(_height, _accuracy))
    axes.set_ylim(max(0, min(accuracies) - 4), 100 - 0.8 * (100 - max(accuracies)))
    axes.yaxis.set_major_locator(FixedLocator(_ACCURACIES))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    minutes = [point.minutes for point in points] or [1, 100]
    axes.set_xscale("log")
    axes.set_xlim(min(minutes) / 2, 7 * max(minutes))  # names are rather to the right
    axes.xaxis.set_major_locator(FixedLocator(_MINUTES))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,g}"))
    axes.set_xlabel("wall time of the whole command, minutes")
    for point in points:
        marker, color = _LOOKS[point.kind]
        x, y, spread = point.minutes, point.accuracy, point.spread or None
        inside = "white" if point.accelerated else color
        axes.errorbar(
            x, y, spread, fmt=marker, color=color, mfc=inside, ms=6, elinewidth=1, zorder=4
        )
    _name_papers(axes, papers, gap=12.5 / (72 * 0.765 * fig.get_figheight()))
    _name_points(axes, points, canvas.get_renderer())
    fig.suptitle(TITLE, x=0.012, ha="left", size=12, weight="bold")
    key = [
        Line2D([], [], lw=0, ms=6, marker=marker, color=color, label=kind)
        for kind, (marker, color) in _LOOKS.items()
        if any(point.kind == kind for point in points)
    ]
    if any(point.accelerated for point in points):
        hollow = Line2D([], [], lw=0, ms=6, marker="o", color=GREY, mfc="white")
        hollow.set_label("on a GPU or TPU")
        key.append(hollow)
    key.append(Line2D([], [], color=GREY, lw=0.9, ls=DASHED, label="what the paper reports"))
    fig.legend(
        handles=key,
        loc="upper left",
        ncols=len(key),
        bbox_to_anchor=(0.055, 0.95),
        columnspacing=1.6,
    )
    return fig


def _height(accuracy: np.ndarray) -> np.ndarray:
    return -np.log10(np.maximum(100 - np.asarray(accuracy, float), 1e-3))


def _accuracy(height: np.ndarray) -> np.ndarray:
    return 100 - 10 ** -np.asarray(height, float)


def _name_papers(axes: Axes, papers: dict[str, float], gap: float) -> None:
    """A line each network, named in the margin, where names keep clear of each other."""
    taken = -1.0
    for network, accuracy in sorted(papers.items(), key=lambda entry: entry[1]):
        axes.axhline(accuracy, color=GREY, lw=0.8, ls=DASHED, alpha=0.7, zorder=1.5)
        place = axes.transAxes.inverted().transform(axes.transData.transform((1, accuracy)))[1]
        taken = max(place, taken + gap)
        axes.annotate(
            f"{network} {accuracy:.2f}",
            *((1, accuracy), (1.02, taken)),
            xycoords=("axes fraction", "data"),
            textcoords="axes fraction",
            size=8.5,
            color=GREY,
            va="center",
            arrowprops={"arrowstyle": "-", "color": GREY, "lw": 0.6, "shrinkA": 1, "shrinkB": 0},
        )


def _name_points(axes: Axes, points: Sequence[Point], renderer: RendererAgg) -> None:
    """Each point's name beside it, on the first side where it covers nothing; else on that where
    it covers the least."""
    size = renderer.points_to_pixels(5)
    frame = axes.get_window_extent(renderer)
    centres = [axes.transData.transform((point.minutes, point.accuracy)) for point in points]
    marks = [Bbox.from_extents(x - size, y - size, x + size, y + size) for x, y in centres]
    names = [
        axes.annotate(
            point.name,
            (point.minutes, point.accuracy),
            xytext=(0, 0),
            textcoords="offset points",
            size=9,
            color=_LOOKS[point.kind][1],
            path_effects=[withStroke(linewidth=2.5, foreground="white")],
            zorder=5,
        )
        for point in points
    ]
    boxes: dict[int, Bbox] = {}

    def put(index: int, side: _Side) -> Bbox:
        position, horizontal, vertical = side
        names[index].set(position=position, ha=horizontal, va=vertical)
        return names[index].get_window_extent(renderer)

    def covered(index: int, side: _Side) -> float:
        box = put(index, side)
        others = [*marks, *(other for i, other in boxes.items() if i != index)]
        outside = box.width * box.height - _shared(box, frame)
        return outside + sum(_shared(box, other) for other in others)

    for _ in range(3):  # what was named first makes way for what was named later
        for index in range(len(points)):
            best = min(_SIDES, key=lambda side: covered(index, side))
            boxes[index] = put(index, best)


def _shared(box: Bbox, other: Bbox) -> float:
    """The area that both cover."""
    common = Bbox.intersection(box, other)
    return common.width * common.height if common else 0.0
