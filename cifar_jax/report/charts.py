"""Lay out the line charts of the report page. The templates draw them as SVG.

The SVG of a chart uses the coordinates of the data, with the y axis negated. The browser stretches
the SVG to the page. The labels of the axes are HTML, so they keep their size on a phone.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from cifar_jax.report.curves import Curve, longest

COLORS, DASHES = 7, 3
"""Number of line colors and dash patterns in page.css."""
_FEW_EPOCHS = 10


class Tick(NamedTuple):
    """A label of an axis."""

    text: str
    value: float
    percent: float
    """Position on the axis, from 0 to 100."""


class Line(NamedTuple):
    """A line of a chart: the mean of a metric over a group of runs.

    A band reaches from the minimum to the maximum over the runs. Runs that end before the last
    epoch are not part of the mean or the band, and are drawn as thin lines.
    """

    name: str
    color: int
    dash: int
    path: str
    band: str
    """SVG path of the band's outline. Empty for a single run."""
    thin: tuple[str, ...]
    """SVG paths of runs that end before the last epoch, such as unfinished runs."""
    dotted: bool
    """Whether the line has a dot at each epoch. True if there are few epochs."""
    value: str
    """Mean at the last epoch, as text."""
    epoch: int
    """Number of the last epoch on the line."""


class Chart(NamedTuple):
    """A line chart of a metric by epoch."""

    title: str
    view_box: str
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    lines: list[Line]

    @property
    def description(self) -> str:
        """Text alternative of the chart."""
        ends = "; ".join(f"{line.name} {line.value} at epoch {line.epoch}" for line in self.lines)
        return f"{self.title} by epoch. At the end: {ends}."


def chart(title: str, groups: Iterable[tuple[str, int, Sequence[Curve]]]) -> Chart | None:
    """Return the chart of a metric, or None if no run has measured the metric.

    Args:
      title: name of the metric, with its unit.
      groups: name, number of the style, and curves of each line. Lines without curves are left out.
    """
    drawn = [(name, style, curves) for name, style, curves in groups if curves]
    if not drawn:
        return None
    lines = [_line(name, style, curves) for name, style, curves in drawn]
    values = [v for *_, curves in drawn for curve in curves for v in curve.values()]
    epochs = [epoch for *_, curves in drawn for curve in curves for epoch in curve]
    first, last = min(epochs), max(epochs)
    left, right = (first, last) if first < last else (first - 1, last + 1)
    marks = [tick for tick in _ticks(left, right, 8) if first <= tick.value <= last]
    bottom, top = _padded(min(values), max(values))
    return Chart(
        title,
        f"{left} {-top:.6g} {right - left} {top - bottom:.6g}",
        [tick._replace(text=f"{tick.value:.0f}") for tick in marks if tick.value % 1 == 0],
        _ticks(bottom, top, 7),
        lines,
    )


def style(number: int) -> tuple[int, int]:
    """Return the indices of the color and the dash pattern for a line."""
    return number % COLORS, number // COLORS % DASHES


def number(value: float) -> str:
    """Return a value with 4 significant digits.

    >>> [number(v) for v in (93.276, 0.00012345, 0.1)]
    ['93.28', '0.0001234', '0.1']
    """
    return f"{value:.4g}"


def dots(path: str) -> str:
    """Return an SVG path that draws a dot at each point of the SVG path `path`.

    >>> dots("M1,-2L2,-3")
    'M1,-2h0M2,-3h0'
    """
    return "".join(f"M{point}h0" for point in path[1:].removesuffix("h0").split("L"))


def _line(name: str, style_number: int, curves: Sequence[Curve]) -> Line:
    kept = longest(curves)
    last = max(kept[0])
    short = [curve for curve in curves if max(curve) < last]
    mean = {epoch: statistics.fmean(curve[epoch] for curve in kept) for epoch in kept[0]}
    high = {epoch: max(curve[epoch] for curve in kept) for epoch in mean}
    low = {epoch: min(curve[epoch] for curve in kept) for epoch in mean}
    band = _path(high) + _path(dict(reversed(low.items()))).replace("M", "L") + "Z"
    value, ends = _text(mean[last]), (_text(low[last]), _text(high[last]))
    if ends[0] != ends[1]:
        value += f" ({'–'.join(ends)})"
    return Line(
        name,
        *style(style_number),
        path=_path(mean),
        band=band if len(kept) > 1 else "",
        thin=tuple(_path(curve) for curve in short),
        dotted=len(mean) <= _FEW_EPOCHS,
        value=value,
        epoch=last,
    )


def _text(value: float) -> str:
    return f"{value:.2f}" if value >= 10 else number(value)


def _path(curve: Curve) -> str:
    # Rounded to four digits, close values of a short run could lie outside of the chart.
    points = [f"{epoch},{-value:.6g}" for epoch, value in curve.items()]
    # A line of length 0 draws a dot for a single epoch.
    return f"M{points[0]}h0" if len(points) == 1 else "M" + "L".join(points)


def _padded(low: float, high: float) -> tuple[float, float]:
    margin = 0.06 * (high - low) or abs(high) or 1.0
    return (max(0.0, low - margin) if low >= 0 else low - margin), high + margin


def _ticks(low: float, high: float, count: int) -> list[Tick]:
    """Return about `count` round values from `low` to `high`. page.js contains the same function in
    JavaScript."""
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    values = [
        k * step for k in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
    ]
    # All labels have the same number of decimals, except for 0.
    decimals = max(0, -math.floor(math.log10(step) + 1e-6))
    return [
        Tick(
            f"{value:.{decimals}f}" if round(value, decimals) else "0",
            value,
            round(100 * (value - low) / (high - low), 2),
        )
        for value in values
    ]
