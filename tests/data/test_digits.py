"""The embedded data set."""

import numpy as np
import pytest

from cifar_jax import data
from cifar_jax.data import digits

# Pinned: a run's record names its data by this, and it must mean the same images everywhere.
FINGERPRINT = "ed82e12d22d225f7494d79d2672c53ee397ea9552793554ee93581a782dc4fd9"


def test_digits() -> None:
    dataset = data.load("digits")
    assert dataset.train.images.shape == (1437, 32, 32, 3)
    assert dataset.test.images.shape == (360, 32, 32, 3)
    assert dataset.train.images.dtype == np.uint8
    assert dataset.classes == tuple("0123456789")
    assert dataset.fingerprint == FINGERPRINT
    for split in (dataset.train, dataset.test):
        counts = np.bincount(split.labels, minlength=10) / len(split.labels)
        assert (abs(counts - 0.1) < 0.005).all(), "each class has its share of each split"
    assert (dataset.train.images.min(), dataset.train.images.max()) == (0, 255)
    assert dataset.mean == pytest.approx(dataset.train.images.mean((0, 1, 2)) / 255)


def test_no_test_image_is_trained_on() -> None:
    dataset = data.load("digits")
    train = {image.tobytes() for image in dataset.train.images}
    assert not any(image.tobytes() in train for image in dataset.test.images)


def test_a_second_load_decodes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    data.load("digits")
    monkeypatch.setattr(digits, "decode", None)
    assert data.load("digits").fingerprint == FINGERPRINT
