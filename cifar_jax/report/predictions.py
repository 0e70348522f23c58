"""What a network took the test images for, and how far its probabilities are to be trusted."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from matplotlib import figure as mpl_figure
from matplotlib.axes import Axes

from cifar_jax.data.cifar10 import CLASSES
from cifar_jax.report.style import DASHED, FAINT, GREY, INK, TRAIN, VALIDATION, Figure, png
from cifar_jax.runs.records import Outputs, read_outputs
from cifar_jax.runs.run import Run

_BINS = 15  # as in Guo et al. 2017, and in most papers since


class Calibration(NamedTuple):
    """A reliability diagram: of each bin of confidence that is not empty, in 0..1."""

    confidence: np.ndarray
    """The mean of the highest probability."""
    accuracy: np.ndarray
    """The share that was right."""
    images: np.ndarray
    """How many there are."""

    @property
    def error(self) -> float:
        """The expected calibration error: |accuracy - confidence|, weighted by images."""
        gaps = np.abs(self.accuracy - self.confidence)
        return float((gaps * self.images).sum() / self.images.sum())


def confusion(outputs: Outputs) -> np.ndarray:
    """How many images of each class (rows) were taken for which (columns)."""
    classes = outputs.logits.shape[1]
    pairs = outputs.labels.astype(np.int64) * classes + outputs.logits.argmax(-1)
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def calibration(outputs: Outputs, bins: int = _BINS) -> Calibration:
    """Confidence against accuracy in `bins` bins of equal width.

    Source: Guo et al., On Calibration of Modern Neural Networks, 2017.
    """
    wide = outputs.logits.astype(np.float64)
    odds = np.exp(wide - wide.max(-1, keepdims=True))
    confidence = 1 / odds.sum(-1)
    right = outputs.logits.argmax(-1) == outputs.labels
    # Bin k holds (k / bins, (k + 1) / bins].
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    count = np.bincount(place, minlength=bins)
    filled = count > 0

    def mean(of: np.ndarray) -> np.ndarray:
        return np.bincount(place, weights=of, minlength=bins)[filled] / count[filled]

    return Calibration(mean(confidence), mean(right), count[filled])


def draw(run: Run, name: str) -> Figure:
    """Confusion matrix and reliability diagram of a run that has outputs, in a file `name`.

    Raises:
      UserError: the outputs cannot be read.
    """
    assert run.outputs
    outputs = read_outputs(run.outputs)
    fig = mpl_figure.Figure(figsize=(10, 5))
    matrix, reliability = fig.subplots(1, 2, width_ratios=(1.12, 1))
    _matrix(matrix, confusion(outputs))
    _reliability(reliability, calibration(outputs))
    title = f"{run.experiment}, seed {run.seed}: the test images"
    fig.suptitle(title, x=0.012, ha="left", size=12, weight="bold")
    fig.tight_layout(rect=(0, 0, 1, 0.99), w_pad=2.5)
    return Figure(name, title, png(fig))


def _matrix(axes: Axes, counts: np.ndarray) -> None:
    shares = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
    # The diagonal would leave no color for the mistakes, which are what one looks for.
    mistakes = np.where(np.eye(len(counts), dtype=bool), np.nan, shares)
    axes.imshow(mistakes, cmap="Oranges", vmin=0, vmax=max(10, float(np.nanmax(mistakes))))
    for row, column in np.ndindex(shares.shape):
        right, share = row == column, shares[row, column]
        axes.text(
            column,
            row,
            f"{share:.0f}" if round(share) else "",
            ha="center",
            va="center",
            size=8.5,
            weight="bold" if right else "normal",
            color="white" if not right and share > 0.6 * axes.images[0].get_clim()[1] else INK,
        )
    names = CLASSES if len(counts) == len(CLASSES) else [str(i) for i in range(len(counts))]
    axes.set_xticks(range(len(counts)), names, rotation=45, ha="right", size=8.5)
    axes.set_yticks(range(len(counts)), names, size=8.5)
    axes.tick_params(length=0)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.set_ylabel("is")
    axes.set_xlabel("was taken for")
    axes.set_title("Confusion matrix, % of each class")


def _reliability(axes: Axes, found: Calibration) -> None:
    confidence, accuracy = 100 * found.confidence, 100 * found.accuracy
    share = 100 * found.images / found.images.sum()
    axes.plot([0, 100], [0, 100], color=INK, lw=1, ls=DASHED, zorder=1.5)
    axes.bar(confidence, share, width=4, color=FAINT, label="share of the images")
    axes.vlines(confidence, confidence, accuracy, color=VALIDATION, lw=1)
    axes.plot(confidence, accuracy, color=TRAIN, marker="o", ms=5, label="accuracy")
    axes.set_xlim(0, 102)
    axes.set_ylim(0, 102)
    axes.set_aspect("equal")
    axes.set_xlabel("confidence (%)")
    axes.set_title("Reliability: accuracy (%) by confidence")
    axes.text(
        0.03,
        0.84,
        f"expected calibration error {100 * found.error:.1f} %",
        transform=axes.transAxes,
        size=9,
        color=GREY,
        va="top",
    )
    axes.legend(loc="upper left", fontsize=9)
