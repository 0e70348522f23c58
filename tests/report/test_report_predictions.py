"""What is drawn of the outputs for the test images, as numbers."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from run_folders import MakeRun

from cifar_jax.report import predictions
from cifar_jax.runs import records
from cifar_jax.runs.reading import read_run


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
    """Alone: 0.92 is in the one before."""
    logits = np.array([[100, -100], [0, 0], [np.log(0.92 / 0.08), 0]], np.float16)
    found = predictions.calibration(records.Outputs(logits, np.zeros(3, np.uint8)))
    assert found.confidence == pytest.approx([0.5, 0.92, 1], abs=1e-3)
    assert found.accuracy.tolist() == [1, 1, 1]
    assert found.error == pytest.approx((0.5 + 0.08) / 3, abs=1e-3)


def test_classes_without_an_image_keep_their_place() -> None:
    seen = records.Outputs(np.eye(3, dtype=np.float16)[[0, 1]], np.zeros(2, np.uint8))
    assert predictions.confusion(seen).tolist() == [[1, 1, 0], [0, 0, 0], [0, 0, 0]]


def test_the_first_bin_is_one_of_many_classes() -> None:
    logits = np.zeros((2, 40), np.float16)
    logits[1, 0] = 2  # confidence 0.16 beside 0.025
    found = predictions.calibration(records.Outputs(logits, np.zeros(2, np.uint8)))
    assert found.images.tolist() == [1, 1]


@pytest.fixture
def drawn(tmp_path: Path, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> list[Axes]:
    """The matrix and the reliability diagram of ten images of three classes, seven of them right:
    two of the four of class 0 were taken for class 2, one of the five of class 1 for class 0, and
    all without any doubt."""
    taken = [0, 0, 2, 2, 1, 1, 1, 1, 0, 2]
    of = np.array([0, 0, 0, 0, 1, 1, 1, 1, 1, 2], np.uint8)
    file = tmp_path / "outputs.npz"
    np.savez(file, logits=100 * np.eye(3, dtype=np.float16)[taken], labels=of)
    run = dataclasses.replace(read_run(make_run("basic")), outputs=file)
    figures: list[Any] = []
    monkeypatch.setattr(predictions, "png", lambda figure: figures.append(figure) or b"")
    assert predictions.draw(run, "name.png").name == "name.png"
    return figures[0].axes


def test_the_matrix_drawn_has_the_shares_of_each_class(drawn: list[Axes]) -> None:
    cells = {
        (int(text.get_position()[1]), int(text.get_position()[0])): text for text in drawn[0].texts
    }
    assert {place: text.get_text() for place, text in cells.items() if text.get_text()} == {
        **{(0, 0): "50", (0, 2): "50", (1, 0): "20", (1, 1): "80", (2, 2): "100"},
    }
    # On the dark ground of many mistakes; what is right has no ground, and stands out by itself.
    assert [place for place, text in cells.items() if text.get_color() == "white"] == [(0, 2)]
    assert [place for place, text in cells.items() if text.get_weight() == "bold"] == [
        *((0, 0), (1, 1), (2, 2)),
    ]
    shown = np.ma.filled(drawn[0].images[0].get_array(), np.nan)
    np.testing.assert_array_equal(shown, [[np.nan, 0, 50], [20, np.nan, 0], [0, 0, np.nan]])
    assert drawn[0].images[0].get_clim() == (0, 50)
    assert [text.get_text() for text in drawn[0].get_xticklabels()] == ["0", "1", "2"]


def test_the_diagram_drawn_is_the_calibration(drawn: list[Axes]) -> None:
    diagonal, accuracy = drawn[1].lines
    assert np.array(diagonal.get_xydata()).tolist() == [[0, 0], [100, 100]]
    assert np.array(accuracy.get_xydata()).tolist() == [[100, 70]]
    (share,) = drawn[1].patches
    assert share.get_height() == 100
    assert share.get_center()[0] == 100
    (gap,) = drawn[1].collections[0].get_segments()
    assert gap.tolist() == [[100, 100], [100, 70]]
    assert [text.get_text() for text in drawn[1].texts] == ["expected calibration error 30.0 %"]
