"""Test the statistics of the report page against direct computations."""

import numpy as np

from cifar_jax.calibration import calibration_error, reliability
from cifar_jax.report.answers import Answers, RunAnswers, surest_mistakes
from cifar_jax.report.confusion import confusion_matrix, most_confused, percent_of_rows
from cifar_jax.runs.run import RunRecord

rng = np.random.default_rng(0)
LABELS, ANSWERS = rng.integers(0, 4, 500), rng.integers(0, 4, 500)
CONFIDENCE = np.concatenate([rng.uniform(size=497), [0, 1 / 15, 1]])


def test_rows_of_the_confusion_matrix_are_true_classes() -> None:
    matrix = confusion_matrix(LABELS, ANSWERS, 5)
    for label in range(5):
        for answer in range(5):
            assert matrix[label, answer] == sum((label == LABELS) & (answer == ANSWERS))
    percent = percent_of_rows(matrix)
    np.testing.assert_allclose(percent[2], 100 * matrix[2] / (LABELS == 2).sum())
    assert not percent[4].any()  # No image has the class 4.
    pairs = most_confused(matrix, 3)
    counts = sorted((matrix[i, j] for i in range(5) for j in range(5) if i != j), reverse=True)
    assert [pair.images for pair in pairs] == counts[:3]
    assert all(pair.label != pair.answer for pair in pairs)
    assert not most_confused(np.diag([3, 4]), 3)


def test_the_calibration_error_is_the_mean_gap_of_the_bins() -> None:
    correct = LABELS == ANSWERS
    expected, counts = 0.0, []
    for k in range(15):
        inside = (k / 15 < CONFIDENCE) & ((k + 1) / 15 >= CONFIDENCE)
        if k == 0:
            inside |= CONFIDENCE == 0
        counts.append(inside.sum())
        if inside.any():
            gap = abs(correct[inside].mean() - CONFIDENCE[inside].mean())
            expected += 100 * inside.mean() * gap
    bins = reliability(CONFIDENCE, correct)
    assert [entry.answers for entry in bins] == counts
    np.testing.assert_allclose(calibration_error(bins), expected)
    sure = reliability(np.ones(10), np.ones(10, bool))
    assert calibration_error(sure) == 0
    assert sure[-1].answers == 10


def test_the_surest_mistakes_name_each_image_once() -> None:
    labels = np.array([0, 0, 0, 1])
    runs = [
        RunAnswers(_RUN, labels, np.array([1, 1, 0, 1]), np.array([0.6, 0.9, 1.0, 1.0]), None),
        RunAnswers(_RUN, labels, np.array([2, 1, 1, 1]), np.array([0.8, 0.5, 0.7, 1.0]), None),
    ]
    found = surest_mistakes(Answers("test", ("a", "b", "c"), tuple(runs)), 2)
    assert [tuple(mistake) for mistake in map(_values, found)] == [
        (1, 0, 1, 0.9, 2),
        (0, 0, 2, 0.8, 2),
    ]
    assert len(surest_mistakes(Answers("test", ("a", "b", "c"), tuple(runs)), 24)) == 3


def _values(mistake: object) -> list[float]:
    return list(vars(mistake).values())


_RUN = RunRecord(*("path", "basic", 0, {"epochs": 1}, {}), result=None, rows=[], sessions=[])  # pyright: ignore
