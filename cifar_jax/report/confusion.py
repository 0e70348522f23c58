"""Count how often a network confuses two classes."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Confused(NamedTuple):
    """Images of one class that the network takes for another class."""

    label: int
    answer: int
    images: int
    """Number of images."""
    percent: float
    """Percentage of the images of class `label`."""


def confusion_matrix(labels: np.ndarray, answers: np.ndarray, classes: int) -> np.ndarray:
    """Return how often each class is predicted for each true class, int64 `[classes, classes]`.

    Rows are true classes, and columns are predicted classes.

    >>> confusion_matrix(np.array([0, 0, 1]), np.array([0, 1, 1]), 2).tolist()
    [[1, 1], [0, 1]]
    """
    cells = labels.astype(np.int64) * classes + answers
    return np.bincount(cells, minlength=classes * classes).reshape(classes, classes)


def percent_of_rows(matrix: np.ndarray) -> np.ndarray:
    """Return each cell as a percentage of its row, float64. A row without images is 0."""
    totals = matrix.sum(axis=1, keepdims=True)
    return 100 * matrix / np.maximum(totals, 1)


def most_confused(matrix: np.ndarray, count: int) -> list[Confused]:
    """Return the `count` largest cells outside the diagonal, largest first. Zeros are left out."""
    percent = percent_of_rows(matrix)
    errors = matrix.copy()
    np.fill_diagonal(errors, 0)
    order = np.argsort(-errors, axis=None, kind="stable")[:count]
    pairs = [divmod(int(index), len(matrix)) for index in order]
    return [
        Confused(label, answer, int(errors[label, answer]), float(percent[label, answer]))
        for label, answer in pairs
        if errors[label, answer]
    ]
