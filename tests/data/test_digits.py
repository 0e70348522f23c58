"""Test the data set `digits`, which ships with the package."""

import numpy as np
import pytest

from cifar_jax import data

# The records of finished runs contain these digests, so the digests must never change.
FINGERPRINT = "ed82e12d22d225f7494d79d2672c53ee397ea9552793554ee93581a782dc4fd9"
CONTENT = "c6b14b6f3fff451700f7a40d896cff39097ac84339dde8c281bd37882f62df5c"


def test_arrays_and_digests() -> None:
    dataset = data.load("digits")
    assert dataset.train.images.shape == (1437, 32, 32, 3)
    assert dataset.test.images.shape == (360, 32, 32, 3)
    assert dataset.train.images.dtype == np.uint8
    assert dataset.classes == tuple("0123456789")
    assert (dataset.fingerprint, dataset.content) == (FINGERPRINT, CONTENT)
    for split in (dataset.train, dataset.test):
        counts = np.bincount(split.labels, minlength=10) / len(split.labels)
        assert (abs(counts - 0.1) < 0.005).all()
    assert (dataset.train.images.min(), dataset.train.images.max()) == (0, 255)
    assert dataset.mean == pytest.approx(dataset.train.images.mean((0, 1, 2)) / 255)


def test_splits_share_no_image() -> None:
    dataset = data.load("digits")
    train = {image.tobytes() for image in dataset.train.images}
    assert not any(image.tobytes() in train for image in dataset.test.images)
