"""Draw the figure of accuracy by epoch. pyplot is not used, because it keeps global state."""

from __future__ import annotations

import io
import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from cifar_jax.errors import UserError

try:
    import matplotlib as mpl
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.ticker import MaxNLocator
except OSError:
    raise UserError(
        "matplotlib finds no folder that it can write to: set MPLCONFIGDIR to such a folder"
    ) from None

from cifar_jax.report.curves import Curve, curves, mean_curve
from cifar_jax.report.groups import SeedGroup, settings_text
from cifar_jax.report.table import mean_std, progress

# Two colors of Okabe and Ito's palette, which color-blind people can distinguish.
TRAIN, VALIDATION = "#0072B2", "#D55E00"
INK, GREY = "#222222", "#767676"
DASHED = (0, (4, 3))
_STYLE: dict[Any, Any] = {
    "font.size": 10,
    "text.parse_math": False,  # A "$" in a name does not start a formula.
    "text.color": INK,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#EEEEEE",
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    # With a fixed salt, the same figure always gives the same file.
    "svg.hashsalt": "cifar_jax",
}
_FEW_EPOCHS = 10
_CAPTION_LENGTH = 30


def svg(groups: Sequence[SeedGroup], description: str) -> bytes:
    """Return the figure as an SVG file whose metadata contain `description`."""
    return render(lambda: draw(groups), description)


def render(draw: Callable[[], Figure], description: str) -> bytes:
    """Call `draw` with the common style, and return the drawn figure as an SVG file."""
    buffer = io.BytesIO()
    with mpl.rc_context(_STYLE):
        metadata = {"Date": None, "Description": description}
        draw().savefig(buffer, format="svg", metadata=metadata)
    # Remove trailing whitespace, which Git marks as an error.
    lines = buffer.getvalue().splitlines()
    return b"\n".join(line.rstrip() for line in lines) + b"\n"


def draw(groups: Sequence[SeedGroup]) -> Figure:
    """Return the figure: accuracy by epoch, in one panel per group."""
    columns = min(5, len(groups))
    rows = math.ceil(len(groups) / columns)
    fig = Figure(figsize=(max(7.4, 2 * columns + 0.3), 2 * rows + 0.75))
    panels = list(fig.subplots(rows, columns, sharey=True, squeeze=False).flat)
    for axes, group in zip(panels, groups, strict=False):
        _panel(axes, group)
    for axes in panels[len(groups) :]:
        axes.set_visible(False)
    low, high = panels[0].get_ylim()
    panels[0].set_ylim(max(0, low), min(100.8, high + 2))
    fig.suptitle("Accuracy (%) by epoch", x=0.01, ha="left", size=10)
    legend = [
        Line2D([], [], color=TRAIN, lw=1.6, label="train"),
        Line2D([], [], color=VALIDATION, lw=1.6, label="validation"),
        Line2D([], [], color=INK, lw=1, ls=DASHED, label="test, paper"),
        Line2D([], [], color=INK, lw=0, marker="D", ms=4, label="test, measured"),
    ]
    fig.legend(handles=legend, loc="upper right", ncols=4, fontsize=8.5, bbox_to_anchor=(0.995, 1))
    fig.tight_layout(rect=(0, 0, 1, 0.99), w_pad=0.7)
    return fig


def _panel(axes: Axes, group: SeedGroup) -> None:
    for split, color in (("train", TRAIN), ("validation", VALIDATION)):
        _lines(axes, curves(group, f"{split}_accuracy"), color)
    epochs = group.epochs or 1
    if group.reference:
        axes.axhline(group.reference.test_accuracy, color=INK, lw=0.9, ls=DASHED, zorder=1.5)
    if measured := group.measured():
        mean = statistics.fmean(measured)
        last = statistics.fmean(r.epochs for r in group.results)  # May have stopped early.
        axes.plot(last, mean, marker="D", ms=4, color=INK, clip_on=False, zorder=5)
    axes.set_xlim(0, epochs)
    ticks = MaxNLocator(nbins=3, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1)
    axes.xaxis.set_major_locator(ticks)
    axes.tick_params(labelsize=8, length=2)
    axes.set_title(group.experiment, size=8.5, weight="bold", pad=15, loc="left")
    axes.text(0, 1.035, _caption(group), size=7.5, color=GREY, transform=axes.transAxes)


def _caption(group: SeedGroup) -> str:
    if group.changes:
        text = " ".join(settings_text(group.changes))
        long = len(text) > _CAPTION_LENGTH
        return f"{text[: _CAPTION_LENGTH - 1]}…" if long else text
    status = progress(group.runs[0]).partition(":")[0] if group.runs else "no record yet"
    paper = f" (paper {group.reference.test_accuracy:.2f})" if group.reference else ""
    return (mean_std(group.measured()) or status) + paper


def _lines(axes: Axes, measured: Sequence[Curve], color: str) -> None:
    if not measured:
        return
    if len(measured) > 1:
        for curve in measured:
            axes.plot(list(curve), list(curve.values()), color=color, lw=0.54, alpha=0.45)
    mean = mean_curve(measured)
    marker = "o" if len(mean) <= _FEW_EPOCHS else None
    axes.plot(list(mean), list(mean.values()), color=color, lw=1.2, marker=marker, ms=4)
