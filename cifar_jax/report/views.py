"""Prepare the predictions of a group of runs for the templates of the report page."""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from cifar_jax import calibration
from cifar_jax.report import confusion, pictures
from cifar_jax.report.answers import Answers, Mistake, surest_mistakes
from cifar_jax.report.table import mean_std

MAX_PICTURES = 24
"""Largest number of pictures for a group of runs."""
MAX_MATRIX = 20
"""Largest number of classes for which the confusion matrix is a table. A larger matrix is a
picture."""
_MOST_CONFUSED = 15


class ClassRow(NamedTuple):
    """Accuracy for the images of one class, in percent."""

    name: str
    accuracy: float
    """Mean accuracy of the runs."""
    low: float
    """Lowest accuracy of a run."""
    high: float
    """Highest accuracy of a run."""
    images: int


class Cell(NamedTuple):
    """A cell of the confusion matrix."""

    images: int
    text: str
    shade: float
    """Strength of the color, from 0 to 1."""


@dataclass(frozen=True)
class AnswersView:
    """The figures about the predictions of a group of runs for one split."""

    answers: Answers
    matrix: list[list[Cell]]
    """Cells of the confusion matrix by row. Empty if there are many classes."""
    heat_map: str
    """Confusion matrix as a picture. Empty if there are few classes."""
    cells: str
    """JSON list of `[label, answer, count]` for the picture. Empty if there are few classes."""
    confused: list[confusion.Confused]
    classes: list[ClassRow]
    bins: list[calibration.Bin]
    calibration_error: str
    """Expected calibration error in percentage points, as text: mean and standard deviation over
    the runs."""
    mistakes: list[Mistake]
    pictures: list[str]
    """Pictures of `mistakes`, as data URIs. Empty if there are none."""
    why_no_pictures: str

    @property
    def epochs(self) -> list[int]:
        """Numbers of the epochs after which the unfinished runs stored their predictions."""
        return sorted({run.epoch for run in self.answers.runs if run.epoch is not None})

    @property
    def largest_bin(self) -> int:
        """Number of predictions in the largest bin."""
        return max(entry.answers for entry in self.bins)


def view(answers: Answers, max_pictures: int) -> AnswersView:
    """Return the figures about the predictions of a group of runs for one split.

    Args:
      answers: the predictions.
      max_pictures: largest number of pictures. 0: no pictures.
    """
    names, runs = answers.classes, answers.runs
    matrix = confusion.confusion_matrix(answers.labels, answers.answer, len(names))
    percent = confusion.percent_of_rows(matrix)
    few = len(names) <= MAX_MATRIX
    per_run = [
        np.diag(
            confusion.percent_of_rows(
                confusion.confusion_matrix(run.labels, run.answer, len(names))
            )
        )
        for run in runs
    ]
    images = np.bincount(runs[0].labels, minlength=len(names))
    errors = [
        calibration.calibration_error(calibration.reliability(run.confidence, run.correct))
        for run in runs
    ]
    mistakes = surest_mistakes(answers, max_pictures or MAX_PICTURES)
    shown, why = [], "This report was made without pictures."
    if max_pictures and mistakes:
        try:
            shown = pictures.thumbnails(runs[0], answers.split, [m.image for m in mistakes])
        except pictures.MissingImagesError as error:
            why = f"There are no pictures, because {error}."
    return AnswersView(
        answers,
        matrix=_cells(matrix, percent) if few else [],
        heat_map="" if few else pictures.heat_map(percent),
        cells="" if few else _sparse(matrix),
        confused=confusion.most_confused(matrix, _MOST_CONFUSED),
        classes=[
            ClassRow(name, statistics.fmean(values), min(values), max(values), int(count))
            for name, count, *values in zip(names, images, *per_run, strict=True)
        ],
        bins=calibration.reliability(
            np.concatenate([run.confidence for run in runs]),
            np.concatenate([run.correct for run in runs]),
        ),
        calibration_error=mean_std(errors),
        mistakes=mistakes,
        pictures=shown,
        why_no_pictures=why,
    )


def _cells(matrix: np.ndarray, percent: np.ndarray) -> list[list[Cell]]:
    """Return the cells of a confusion matrix. Errors are shaded relative to the largest error."""
    errors = percent.copy()
    np.fill_diagonal(errors, 0)
    largest = errors.max() or 1
    shades = np.sqrt(errors / largest)
    np.fill_diagonal(shades, np.diag(percent) / 100)
    return [
        [
            Cell(int(count), _percent_text(share), round(float(shade), 2))
            for count, share, shade in zip(*rows, strict=True)
        ]
        for rows in zip(matrix, percent, shades, strict=True)
    ]


def _percent_text(share: float) -> str:
    return "" if share == 0 else "<1" if share <= 0.5 else f"{share:.0f}"


def _sparse(matrix: np.ndarray) -> str:
    rows, columns = matrix.nonzero()
    cells = np.stack([rows, columns, matrix[rows, columns]], axis=1)
    return json.dumps(cells.tolist(), separators=(",", ":"))
