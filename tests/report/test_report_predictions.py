"""What is drawn of the outputs for the test images, as numbers."""

import numpy as np
import pytest

from cifar_jax.report import predictions
from cifar_jax.runs import records


def test_a_confusion_matrix_counts_what_was_taken_for_what() -> None:
    logits = np.eye(3, dtype=np.float16)[[0, 1, 1, 2, 2, 2]]
    counts = predictions.confusion(records.Outputs(logits, np.array([0, 0, 1, 2, 2, 0], np.uint8)))
    assert counts.tolist() == [[1, 1, 1], [0, 1, 0], [0, 0, 2]]


def test_calibration_is_confidence_against_accuracy_in_bins() -> None:
    """Two bins: 0.55 of whom half are right, and 0.9 of whom three of four are."""
    confidence = np.array([0.55, 0.55, 0.9, 0.9, 0.9, 0.9])
    logits = np.log(np.stack([confidence, 1 - confidence], 1))
    found = predictions.calibration(records.Outputs(logits, np.array([0, 1, 0, 0, 0, 1], np.uint8)))
    assert found.confidence == pytest.approx([0.55, 0.9])
    assert found.accuracy == pytest.approx([0.5, 0.75])
    assert found.images.tolist() == [2, 4]
    assert found.error == pytest.approx((2 * 0.05 + 4 * 0.15) / 6)


def test_certainty_falls_into_the_last_bin() -> None:
    sure = records.Outputs(np.array([[100, -100], [0, 0]], np.float16), np.zeros(2, np.uint8))
    found = predictions.calibration(sure)
    assert found.confidence == pytest.approx([0.5, 1])
    assert found.error == pytest.approx(0.25)
