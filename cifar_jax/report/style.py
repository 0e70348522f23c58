"""How the figures look, and figures as files.

Everything is drawn in memory and without pyplot, which keeps state and wants a display.
"""

from __future__ import annotations

import io
from typing import Any, NamedTuple

from matplotlib import figure as mpl_figure

# Okabe and Ito's palette, which color-blind people can tell apart.
TRAIN, VALIDATION = "#0072B2", "#D55E00"
INK, GREY, FAINT = "#222222", "#767676", "#DDDDDD"
DASHED = (0, (4, 3))
STYLE: dict[Any, Any] = {
    "font.size": 10,
    "text.parse_math": False,  # names of runs may have a $
    "text.color": INK,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#EEEEEE",
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "savefig.dpi": 144,
    "svg.hashsalt": "cifar_jax",  # the same drawing is the same file
}


class Figure(NamedTuple):
    """A drawn picture."""

    name: str
    """Of its file."""
    title: str
    png: bytes


def png(fig: mpl_figure.Figure) -> bytes:
    """`fig` as a PNG file."""
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png")
    return buffer.getvalue()


def svg(fig: mpl_figure.Figure, description: str) -> bytes:
    """`fig` as an SVG file, which holds `description` and no date.

    It has a white ground: what is black on white is read on a dark page too.
    """
    buffer = io.BytesIO()
    fig.savefig(buffer, format="svg", metadata={"Date": None, "Description": description})
    # matplotlib leaves blanks at the ends of its lines.
    return b"\n".join(line.rstrip() for line in buffer.getvalue().splitlines()) + b"\n"


def shortened(text: str, length: int) -> str:
    """`text`, cut where it is longer than `length`."""
    return text if len(text) <= length else text[: length - 1] + "…"
