"""The figures of a report: curves of a group of runs and of all experiments, and the paper beside
what was measured."""

from __future__ import annotations

import hashlib
import itertools
import math
import statistics
from collections.abc import Sequence

import matplotlib as mpl
from matplotlib import figure as mpl_figure
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from cifar_jax.report import predictions, recipes, wall_time
from cifar_jax.report.groups import SeedGroup, settings_text
from cifar_jax.report.style import (
    DASHED,
    GREY,
    INK,
    STYLE,
    TRAIN,
    VALIDATION,
    Figure,
    png,
    shortened,
    svg,
)
from cifar_jax.report.table import mean_std, progress
from cifar_jax.runs.run import Run

_REDUCING = ("plateau", "step")
_FEW_EPOCHS = 10


def draw(groups: Sequence[SeedGroup]) -> list[Figure]:
    """The figures of a report, in its order; there is none of what left nothing to draw."""
    own = [group for group in groups if not group.changes]
    figures = []
    with mpl.rc_context(STYLE):
        comparable = [group for group in own if group.paper and group.results]
        if len(comparable) > 1:
            figures.append(_paper_against_measured(comparable))
        with_curves = [group for group in own if _curves(group, "train_accuracy")]
        if len(with_curves) > 1:
            title = "Accuracy of every experiment"
            figures.append(Figure("overview.png", title, png(_panels(with_curves))))
        if len(points := recipes.points(own)) > 1:
            figures.append(wall_time.figure(points))
        figures += [_group(group) for group in groups if any(run.rows for run in group.runs)]
        figures += [
            predictions.draw(run, f"{_name(group)}-seed{run.seed}-outputs.png")
            for group in groups
            for run in group.finished
            if run.outputs
        ]
    return figures


def panels_svg(groups: Sequence[SeedGroup], description: str) -> bytes:
    """A small panel for each group, run or not, as an SVG file that holds `description`."""
    with mpl.rc_context(STYLE):
        return svg(_panels(groups), description)


def _group(group: SeedGroup) -> Figure:
    """Loss and accuracy of one group, side by side."""
    seeds = [run.seed for run in group.runs if run.rows]
    fig = mpl_figure.Figure(figsize=(10, 4.2))
    loss, accuracy = fig.subplots(1, 2)
    for axes, name in ((loss, "loss"), (accuracy, "accuracy")):
        for split, color in (("train", TRAIN), ("validation", VALIDATION)):
            _lines(axes, _curves(group, f"{split}_{name}"), color)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(_whole(8))
        _epoch_limits(axes, group)
    loss.set_title("Loss (cross-entropy, nats)")
    loss.set_ylim(bottom=0)
    accuracy.set_title("Accuracy (%)")
    reduced = [reductions(run) for run in group.runs]
    for epochs in reduced:
        for axes in (loss, accuracy):
            for epoch in epochs:
                axes.axvline(epoch, color=GREY, lw=0.8, ls=":", alpha=0.9 / len(seeds), zorder=1)
    _references(accuracy, group)
    _accuracy_limits(accuracy)

    key = [Line2D([], [], color=TRAIN, lw=2, label="train")]
    if _curves(group, "validation_loss"):
        key.append(Line2D([], [], color=VALIDATION, lw=2, label="validation"))
    if len(seeds) > 1:
        key.append(Line2D([], [], color=GREY, lw=0.8, label="each seed; thick: mean"))
    if any(reduced):
        key.append(Line2D([], [], color=GREY, lw=1, ls=":", label="learning rate reduced"))
    named = "seed" if len(seeds) == 1 else "seeds"
    details = [*settings_text(group.changes), f"{named} {', '.join(map(str, seeds))}"]
    title = f"{group.experiment}: loss and accuracy"
    fig.text(0.012, 0.985, group.experiment, size=13, weight="bold", va="top")
    fig.text(0.012, 0.925, shortened("  ".join(details), 130), size=9, color=GREY, va="top")
    fig.legend(handles=key, loc="upper right", ncols=len(key), bbox_to_anchor=(0.99, 1.0))
    fig.subplots_adjust(left=0.055, right=0.905, bottom=0.115, top=0.80, wspace=0.14)
    return Figure(f"{_name(group)}.png", title, png(fig))


def _panels(groups: Sequence[SeedGroup]) -> mpl_figure.Figure:
    """Accuracy by epoch, a small panel each: ten lines in one panel would end in one knot."""
    columns = min(5, len(groups))
    rows = math.ceil(len(groups) / columns)
    fig = mpl_figure.Figure(figsize=(max(7.4, 2 * columns + 0.3), 2 * rows + 0.75))
    panels = list(fig.subplots(rows, columns, sharey=True, squeeze=False).flat)
    for axes, group in zip(panels, groups, strict=False):
        for split, color in (("train", TRAIN), ("validation", VALIDATION)):
            _lines(axes, _curves(group, f"{split}_accuracy"), color, width=1.2)
        epochs = group.epochs or 1
        if group.reference:
            axes.axhline(group.reference.test_accuracy, color=INK, lw=0.9, ls=DASHED, zorder=1.5)
        if measured := group.measured():
            mean = statistics.fmean(measured)
            axes.plot(epochs, mean, marker="D", ms=4, color=INK, clip_on=False, zorder=5)
        axes.set_xlim(0, epochs)
        axes.xaxis.set_major_locator(_whole(3))
        axes.tick_params(labelsize=8, length=2)
        axes.set_title(group.experiment, size=8.5, weight="bold", pad=15)
        axes.text(0, 1.035, _told(group), size=7.5, color=GREY, transform=axes.transAxes)
    for axes in panels[len(groups) :]:
        axes.set_visible(False)
    _accuracy_limits(panels[0])
    fig.suptitle("Accuracy (%) by epoch", x=0.01, ha="left", size=10)
    key = [
        Line2D([], [], color=TRAIN, lw=1.6, label="train"),
        Line2D([], [], color=VALIDATION, lw=1.6, label="validation"),
        Line2D([], [], color=INK, lw=1, ls=DASHED, label="test, the paper"),
        Line2D([], [], color=INK, lw=0, marker="D", ms=4, label="test, measured"),
    ]
    fig.legend(handles=key, loc="upper right", ncols=4, fontsize=8.5, bbox_to_anchor=(0.995, 1))
    fig.tight_layout(rect=(0, 0, 1, 0.99), w_pad=0.7)
    return fig


def _told(group: SeedGroup) -> str:
    """What came out, in a few words."""
    paper = f"paper {group.reference.test_accuracy:.2f}" if group.reference else ""
    if measured := mean_std(group.measured()):
        return f"{paper} → {measured}" if paper else measured
    so_far = [progress(run).partition(":")[0] for run in group.unfinished[:1]] or ["no record yet"]
    return ", ".join(filter(None, (paper, *so_far)))


def _paper_against_measured(groups: Sequence[SeedGroup]) -> Figure:
    """Measured less the paper's test accuracy, a row an experiment."""
    fig = mpl_figure.Figure(figsize=(8, 0.36 * len(groups) + 1.5))
    axes = fig.subplots()
    names, reach = [], 1.0
    for y, group in enumerate(groups):
        assert group.paper
        paper, measured = group.paper.test_accuracy, group.measured()
        mean = statistics.fmean(measured)
        spread = statistics.stdev(measured) if len(measured) > 1 else 0
        axes.errorbar(mean - paper, y, xerr=spread or None, fmt="o", ms=6.5, color=VALIDATION)
        names.append(f"{group.experiment}   {paper:.2f} → {mean:.2f}")
        reach = max(reach, abs(mean - paper) + spread)
    axes.axvline(0, color=INK, lw=1, ls=DASHED, zorder=1.5)
    axes.set_yticks(range(len(groups)), names)
    axes.set_ylim(len(groups) - 0.4, -0.6)
    axes.set_xlim(-1.12 * reach, 1.12 * reach)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("difference in percentage points; bar: ± standard deviation")
    axes.xaxis.set_major_formatter("{x:+g}")
    title = "Test accuracy (%), paper → measured"
    fig.suptitle(title, x=0.012, ha="left", size=12, weight="bold")
    fig.tight_layout()
    return Figure("paper-and-measured.png", title, png(fig))


Curve = tuple[list[int], list[float]]
"""Epochs, and a value each; NaN where it was not finite."""


def _curves(group: SeedGroup, name: str) -> list[Curve]:
    """A curve each run that has `name` among its metrics."""
    curves = []
    for run in group.runs:
        rows = [row for row in run.rows if isinstance(row.get(name), int | float)]
        if rows:
            values = [float(row[name]) for row in rows]
            finite = [value if math.isfinite(value) else math.nan for value in values]
            curves.append(([row["epoch"] for row in rows], finite))
    return curves


def _mean_curve(curves: Sequence[Curve]) -> Curve:
    """Of the runs that got furthest, over the epochs they share: others would make it jump."""
    furthest = max(epochs[-1] for epochs, _ in curves)
    values = [dict(zip(*curve, strict=True)) for curve in curves if curve[0][-1] == furthest]
    shared = sorted(set.intersection(*(set(value) for value in values)))
    return shared, [statistics.fmean(value[epoch] for value in values) for epoch in shared]


def _lines(axes: Axes, curves: Sequence[Curve], color: str, width: float = 1.8) -> None:
    if not curves:
        return
    if len(curves) > 1:
        for curve in curves:
            axes.plot(*curve, color=color, lw=0.45 * width, alpha=0.45)
    epochs, values = _mean_curve(curves)
    # Few epochs, and those between epochs that are not finite, would hardly show as a line.
    lone = len(epochs) <= _FEW_EPOCHS
    axes.plot(epochs, values, color=color, lw=width, marker="o" if lone else None, ms=4)


def reductions(run: Run) -> list[int]:
    """The epochs after which the learning rate was reduced."""
    if run.settings.get("schedule.name") not in _REDUCING:
        return []
    rates = [(row["epoch"], row.get("learning_rate", math.nan)) for row in run.rows]
    return [
        epoch for (epoch, rate), (_, following) in itertools.pairwise(rates) if following < rate
    ]


def _references(axes: Axes, group: SeedGroup) -> None:
    """The paper's and the measured test accuracy, named in the margin where nothing is crossed."""
    named = []
    if group.reference:
        axes.axhline(group.reference.test_accuracy, color=INK, lw=1, ls=DASHED, zorder=1.5)
        named.append((group.reference.test_accuracy, "paper"))
    if measured := group.measured():
        mean = statistics.fmean(measured)
        axes.plot(group.epochs or 1, mean, marker="D", ms=5, color=INK, clip_on=False, zorder=5)
        named.append((mean, "test"))
    for (accuracy, name), side in zip(sorted(named), ("top", "bottom"), strict=False):
        axes.annotate(
            f"{name} {accuracy:.2f}",
            (1, accuracy),
            xycoords=("axes fraction", "data"),
            xytext=(5, 0),
            textcoords="offset points",
            size=9,
            va=side if len(named) > 1 else "center",
            annotation_clip=False,
        )


def _whole(ticks: int) -> MaxNLocator:
    """At most so many ticks, at round numbers of epochs."""
    return MaxNLocator(nbins=ticks, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1)


def _epoch_limits(axes: Axes, group: SeedGroup) -> None:
    last = max(run.epochs for run in group.runs)
    margin = 0.5 if last == 1 else 0.02 * last
    axes.set_xlim(1 - margin, last + margin)


def _accuracy_limits(axes: Axes) -> None:
    """From the lowest curve to 100 %, but to no more than is needed."""
    low, high = axes.get_ylim()
    axes.set_ylim(max(0, low), min(100.8, high + 2))


def _name(group: SeedGroup) -> str:
    """For files: of the same settings always the same, and of others another."""
    name = group.experiment.replace("/", "-")
    if not group.changes:
        return name
    text = "\n".join(settings_text(group.changes))
    return f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
