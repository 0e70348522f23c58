"""Measure how well the predicted probabilities of a network match its accuracy."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

BINS = 15
"""Default number of bins of a reliability diagram, as in Guo et al., "On Calibration of Modern
Neural Networks", 2017. All bins have the same width."""


class Bin(NamedTuple):
    """One bin of a reliability diagram: the predictions with a probability in (low, high]."""

    low: float
    high: float
    answers: int
    """Number of predictions in the bin."""
    confidence: float
    """Mean probability of the predictions in the bin, from 0 to 1. 0 for an empty bin."""
    accuracy: float
    """Fraction of the predictions in the bin that are correct. 0 for an empty bin."""


def reliability(confidence: np.ndarray, correct: np.ndarray, bins: int = BINS) -> list[Bin]:
    """Return the bins of a reliability diagram.

    Args:
      confidence: probability of each predicted class, `[N]`.
      correct: whether each prediction is correct, `[N]`.
      bins: number of bins.
    """
    edges = np.linspace(0, 1, bins + 1)
    index = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)
    counts = np.bincount(index, minlength=bins)
    total = np.maximum(counts, 1)
    confidences = np.bincount(index, confidence, bins) / total
    accuracies = np.bincount(index, correct, bins) / total
    return [
        Bin(float(edges[i]), float(edges[i + 1]), int(n), float(confidences[i]), float(a))
        for i, (n, a) in enumerate(zip(counts, accuracies, strict=True))
    ]


def calibration_error(bins: list[Bin]) -> float:
    """Return the expected calibration error in percentage points.

    The error is the mean of |accuracy - confidence| over the bins. Each bin is weighted by its
    number of predictions.
    """
    total = sum(entry.answers for entry in bins)
    gaps = sum(entry.answers * abs(entry.accuracy - entry.confidence) for entry in bins)
    return 100 * gaps / total
