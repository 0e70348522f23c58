"""Test the splits, statistics and digests of a data set."""

import numpy as np
import pytest

from cifar_jax import data
from cifar_jax.data.dataset import (
    Arrays,
    Split,
    channel_statistics,
    content_digest,
    describe,
    fingerprint,
)
from cifar_jax.errors import UserError


def split_of(count: int) -> Split:
    return Split(np.zeros((count, 32, 32, 3), np.uint8), np.arange(count, dtype=np.int32))


@pytest.mark.parametrize(
    ("validation", "held_out"), [(0, 0), (0.1, 5), (0.5, 25), (1, 1), (7, 7), (7.0, 7), (49, 49)]
)
def test_validation_is_the_end_of_train(validation: float, held_out: int) -> None:
    train, held = data.split_validation(split_of(50), validation)
    assert held.labels.tolist() == list(range(50 - held_out, 50))
    assert train.labels.tolist() == list(range(50 - held_out))
    assert (len(train.images), len(held.images)) == (50 - held_out, held_out)


@pytest.mark.parametrize("validation", [-0.1, -1, 50, 51, 2.5, 0.999, 0.001, float("nan")])
def test_validation_out_of_range(validation: float) -> None:
    with pytest.raises(UserError, match=r"data\.validation is .* below 50\."):
        data.split_validation(split_of(50), validation)


def test_statistics_equal_those_of_numpy() -> None:
    images = np.random.default_rng(1).integers(0, 200, (1500, 32, 32, 3), np.uint8)
    mean, std = channel_statistics(images)
    np.testing.assert_allclose(mean, (images / 255).mean((0, 1, 2)), rtol=1e-9)
    np.testing.assert_allclose(std, (images / 255).std((0, 1, 2)), rtol=1e-9)


def test_constant_channel_is_refused(images: Arrays) -> None:
    images.train.images[..., 2] = 7
    with pytest.raises(
        UserError, match="cannot be normalized, because all pixels have the same blue"
    ):
        describe("pets", images)


def test_content_digest_does_not_depend_on_the_order(images: Arrays) -> None:
    order = np.random.default_rng(1).permutation(len(images.train.labels))
    shuffled = Split(*(part[order] for part in images.train))
    assert content_digest(shuffled, images.test) == content_digest(images.train, images.test)
    assert fingerprint(shuffled, images.test) != fingerprint(images.train, images.test)


@pytest.mark.parametrize("change", ["pixel", "label", "left out", "twice", "swapped splits"])
def test_content_digest_depends_on_everything_else(images: Arrays, change: str) -> None:
    train, test = images.train, images.test
    content = content_digest(train, test)
    if change == "pixel":
        train = Split(train.images.copy(), train.labels)
        train.images[3, 0, 0, 0] ^= 1
    elif change == "label":
        train = Split(train.images, (train.labels + 1) % 10)
    elif change == "left out":
        train = Split(train.images[1:], train.labels[1:])
    elif change == "twice":
        train = Split(*(np.concatenate([part, part[:1]]) for part in train))
    else:
        train, test = test, train
    assert content_digest(train, test) != content
