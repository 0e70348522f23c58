"""Augmentation of batches, against plain NumPy."""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cifar_jax import ops
from cifar_jax.data import augment


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(1, 256, (64, 6, 5, 3), np.uint8)


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
@pytest.mark.parametrize("padding", [1, 4])
def test_crops_are_windows_of_the_zero_padded_image(
    images: np.ndarray, padding: int, platform: str
) -> None:
    height, width = images.shape[1:3]
    with ops.plain(platform):
        crops = augment.augment(jax.random.key(1), jnp.asarray(images), padding, False)
    crops = np.asarray(crops)
    assert crops.dtype == np.uint8
    sides = (padding, padding)
    padded = np.pad(images, [(0, 0), sides, sides, (0, 0)])
    corners = set()
    for crop, whole in zip(crops, padded, strict=True):
        found = [
            (y, x)
            for y in range(2 * padding + 1)
            for x in range(2 * padding + 1)
            if np.array_equal(crop, whole[y : y + height, x : x + width])
        ]
        assert found
        corners.add(found[0])
    # Each image has its own corner, and both ends of the range are reached.
    for axis in range(2):
        assert {corner[axis] for corner in corners} == set(range(2 * padding + 1))


@pytest.mark.parametrize("crop", [augment.crop_by_slices, augment.crop_by_products])
def test_both_ways_to_crop_are_exact(images: np.ndarray, crop: Callable) -> None:
    """From windows that lie outside of the image to those inside."""
    height, width = images.shape[1:3]
    rng = np.random.default_rng(0)
    down, across = rng.integers(-height, height + 1, 64), rng.integers(-width, width + 1, 64)
    down[:2], across[:2] = (-height, height), (width, -width)
    padded = np.pad(images, [(0, 0), (height, height), (width, width), (0, 0)])
    expected = [
        image[height + y : 2 * height + y, width + x : 2 * width + x]
        for image, y, x in zip(padded, down, across, strict=True)
    ]
    crops = crop(jnp.asarray(images), jnp.asarray(down), jnp.asarray(across))
    np.testing.assert_array_equal(crops, expected)
    chex.assert_type(crops, jnp.uint8)


def test_crops_and_mirrors_are_independent(images: np.ndarray) -> None:
    """Of 4,096 copies of an image each of the 9 · 2 variants makes up an eighteenth."""
    copies = jnp.repeat(jnp.asarray(images[:1]), 4096, axis=0)
    variants = np.asarray(augment.augment(jax.random.key(0), copies, 1, True))
    _, counts = np.unique(variants, axis=0, return_counts=True)
    assert len(counts) == 18
    assert 0.7 * 4096 / 18 < counts.min() <= counts.max() < 1.3 * 4096 / 18


def test_flip_mirrors_about_half_of_the_images(images: np.ndarray) -> None:
    flipped = np.asarray(augment.augment(jax.random.key(2), jnp.asarray(images), 0, True))
    same = (flipped == images).all(axis=(1, 2, 3))
    mirrored = (flipped == images[:, :, ::-1]).all(axis=(1, 2, 3))
    assert (same | mirrored).all()
    assert 0.25 < mirrored.mean() < 0.75


def test_no_augmentation_changes_nothing(images: np.ndarray) -> None:
    unchanged = augment.augment(jax.random.key(0), jnp.asarray(images), 0, False)
    np.testing.assert_array_equal(unchanged, images)


def test_augmentation_follows_from_the_key(images: np.ndarray) -> None:
    def augmented(seed: int) -> np.ndarray:
        key = jax.random.key(seed)
        return np.asarray(augment.augment(key, jnp.asarray(images), 2, True))

    np.testing.assert_array_equal(augmented(0), augmented(0))
    assert (augmented(0) != augmented(1)).any()
