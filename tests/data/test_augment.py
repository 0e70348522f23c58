"""Test the augmentation of batches against NumPy."""

from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy import stats

from cifar_jax import ops
from cifar_jax.data import augment
from cifar_jax.data.augment import Fill


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(1, 256, (64, 9, 8, 3), np.uint8)


@pytest.fixture
def normalized() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(64, 8, 6, 3)).astype(np.float32)


@pytest.fixture
def labels() -> np.ndarray:
    return np.random.default_rng(2).integers(0, 5, 64, np.int32)


@pytest.mark.parametrize("crop", [augment.crop_by_slices, augment.crop_by_products])
@pytest.mark.parametrize(("fill", "mode"), [("zeros", "constant"), ("reflect", "reflect")])
@pytest.mark.parametrize("largest", [1, 4, 20])
def test_both_forms_of_crop_are_exact(
    images: np.ndarray, crop: Callable, fill: Fill, mode: Any, largest: int
) -> None:
    """Some of the crops lie mostly outside the image."""
    height, width = images.shape[1:3]
    rng = np.random.default_rng(0)
    down, across = rng.integers(-largest, largest + 1, (2, 64))
    down[:2], across[:2] = (-largest, largest), (largest, -largest)
    padded = np.pad(images, [(0, 0), (largest,) * 2, (largest,) * 2, (0, 0)], mode=mode)
    expected = [
        image[largest + y : largest + height + y, largest + x : largest + width + x]
        for image, y, x in zip(padded, down, across, strict=True)
    ]
    crops = crop(jnp.asarray(images), jnp.asarray(down), jnp.asarray(across), largest, fill)
    np.testing.assert_array_equal(crops, expected)
    chex.assert_type(crops, jnp.uint8)


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
@pytest.mark.parametrize(("fill", "mode"), [("zeros", "constant"), ("reflect", "reflect")])
def test_all_crops_and_mirror_images_are_equally_likely(
    images: np.ndarray, platform: str, fill: Fill, mode: Any
) -> None:
    """With 1 pixel of padding, an image has 9 different crops. Each crop has a mirror image."""
    copies = jnp.repeat(jnp.asarray(images[:1]), 4096, axis=0)
    with ops.force_platform(platform):
        variants = np.asarray(augment.augment(jax.random.key(0), copies, 1, True, fill))
    assert variants.dtype == np.uint8
    unique, counts = np.unique(variants, axis=0, return_counts=True)
    height, width = images.shape[1:3]
    padded = np.pad(images[0], [(1, 1), (1, 1), (0, 0)], mode=mode)
    crops = [padded[y : y + height, x : x + width] for y in range(3) for x in range(3)]
    expected = {crop.tobytes() for whole in crops for crop in (whole, whole[:, ::-1])}
    assert {variant.tobytes() for variant in unique} == expected
    assert len(counts) == 18
    assert 0.7 * 4096 / 18 < counts.min() <= counts.max() < 1.3 * 4096 / 18


def test_no_augmentation_changes_nothing(images: np.ndarray) -> None:
    unchanged = augment.augment(jax.random.key(0), jnp.asarray(images), 0, False)
    np.testing.assert_array_equal(unchanged, images)


def test_equal_keys_give_equal_augmentation(images: np.ndarray) -> None:
    def augmented(seed: int) -> np.ndarray:
        key = jax.random.key(seed)
        return np.asarray(augment.augment(key, jnp.asarray(images), 2, True))

    np.testing.assert_array_equal(augmented(0), augmented(0))
    assert (augmented(0) != augmented(1)).any()


def test_alternating_flip_shows_both_sides_in_two_consecutive_epochs(images: np.ndarray) -> None:
    indices = np.random.default_rng(0).permutation(1000)[:64].astype(np.int32)

    @jax.jit
    def shown(epoch: jax.Array) -> jax.Array:
        return augment.alternating_flip(jax.random.key(0), images, indices, epoch)

    chex.assert_type(shown(0), jnp.uint8)
    epochs = np.stack([shown(epoch) for epoch in range(4)])
    mirrored = (epochs == images[:, :, ::-1]).all(axis=(2, 3, 4))
    same = (epochs == images).all(axis=(2, 3, 4))
    assert (mirrored ^ same).all()
    assert 0.25 < mirrored[0].mean() < 0.75
    for before, after in pairwise(mirrored):
        np.testing.assert_array_equal(after, ~before)


def test_a_flip_depends_only_on_run_image_and_epoch() -> None:
    picture = np.arange(6, dtype=np.uint8).reshape(1, 1, 2, 3)

    def mirrored(seed: int, indices: np.ndarray) -> np.ndarray:
        copies = jnp.asarray(np.repeat(picture, len(indices), axis=0))
        flipped = augment.alternating_flip(jax.random.key(seed), copies, jnp.asarray(indices), 2)
        return np.asarray(flipped)[:, 0, 0, 0] != 0

    every = mirrored(0, np.arange(5000))
    assert abs(every.mean() - 0.5) < 0.03
    # Whether an image is flipped does not depend on its batch or its position in the batch.
    some = np.array([4321, 7, 7, 0])
    np.testing.assert_array_equal(mirrored(0, some), every[some])
    # Flips are independent between runs, and between neighboring images.
    assert abs((mirrored(1, np.arange(5000)) == every).mean() - 0.5) < 0.03
    assert abs((every[1:] == every[:-1]).mean() - 0.5) < 0.03


@pytest.mark.parametrize("size", [1, 3, 4, 20])
def test_cutout_is_a_square_around_any_pixel(size: int) -> None:
    height, width = 8, 6
    ones = jnp.ones((2000, height, width, 3))
    cut = np.asarray(augment.cutout(jax.random.key(0), ones, size))
    assert (cut == cut[..., :1]).all()
    expected = {}
    for y in range(height):
        for x in range(width):
            image = np.ones((height, width))
            top, left = max(y - size // 2, 0), max(x - size // 2, 0)
            image[top : y - size // 2 + size, left : x - size // 2 + size] = 0
            expected[image.tobytes()] = expected.get(image.tobytes(), 0) + 1 / (height * width)
    counts = Counter(image.astype(float).tobytes() for image in cut[..., 0])
    assert counts.keys() == expected.keys()
    for image, share in expected.items():
        assert abs(counts[image] / 2000 - share) < 4 * np.sqrt(share / 2000)


def test_cutout_does_not_change_other_pixels(normalized: np.ndarray) -> None:
    cut = np.asarray(augment.cutout(jax.random.key(0), jnp.asarray(normalized), 4))
    assert ((cut == normalized) | (cut == 0)).all()
    unchanged = augment.cutout(jax.random.key(0), jnp.asarray(normalized), 0)
    np.testing.assert_array_equal(unchanged, normalized)


def test_mixup_mixes_images_and_labels_with_the_same_weight(
    normalized: np.ndarray, labels: np.ndarray
) -> None:
    mixed, soft = augment.mixup(
        jax.random.key(0), jnp.asarray(normalized), jnp.asarray(labels), 0.4, 5
    )
    chex.assert_type([mixed, soft], jnp.float32)
    np.testing.assert_allclose(soft.sum(1), 1, rtol=1e-6)
    differ = labels != np.roll(labels, 1)
    shares = np.asarray(soft)[np.arange(64), labels][differ]
    share = shares[0]
    np.testing.assert_allclose(shares, share, rtol=1e-6)
    assert 0 < share < 1
    expected = share * normalized + (1 - share) * np.roll(normalized, 1, axis=0)
    np.testing.assert_allclose(mixed, expected, atol=1e-6)
    one_hot = np.eye(5)[labels]
    expected = share * one_hot + (1 - share) * np.roll(one_hot, 1, axis=0)
    np.testing.assert_allclose(soft, expected, atol=1e-6)


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_weights_of_mixup_have_the_beta_distribution(alpha: float) -> None:
    pair = jnp.zeros((2, 1, 1, 1)), jnp.arange(2)
    keys = jax.random.split(jax.random.key(0), 1000)
    drawn = jax.jit(jax.vmap(lambda key: augment.mixup(key, *pair, alpha, 2)[1][0, 0]))(keys)
    assert stats.kstest(np.asarray(drawn, float), stats.beta(alpha, alpha).cdf).pvalue > 0.01


def test_cutmix_pastes_a_box_and_mixes_the_labels_by_its_area(
    normalized: np.ndarray, labels: np.ndarray
) -> None:
    """100 draws give small and large boxes. At each border of the image, some boxes are clipped."""
    height, width = normalized.shape[1:3]
    other = np.roll(normalized, 1, axis=0)
    differ = labels != np.roll(labels, 1)
    cutmix = jax.jit(lambda key: augment.cutmix(key, normalized, labels, 1.0, 5))
    corners, areas = [], []
    for seed in range(100):
        mixed, soft = (np.asarray(x) for x in cutmix(jax.random.key(seed)))
        taken = (mixed == other).all((0, 3))
        assert ((mixed == normalized).all((0, 3)) == ~taken).all()
        rows, columns = taken.any(1).nonzero()[0], taken.any(0).nonzero()[0]
        assert taken.sum() == len(rows) * len(columns)  # The pasted pixels form a box.
        share = 1 - taken.mean()
        np.testing.assert_allclose(soft.sum(1), 1, rtol=1e-6)
        weights = soft[np.arange(64), labels]
        np.testing.assert_allclose(weights, np.where(differ, share, 1), atol=1e-6)
        areas.append(taken.mean())
        if taken.any():
            corners.append((rows[0], rows[-1], columns[0], columns[-1]))
            clipped = rows[0] == 0 or rows[-1] == height - 1
            assert clipped or len(rows) % 2 == 0
    low, high = np.min(corners, 0), np.max(corners, 0)
    np.testing.assert_array_equal(low[[0, 2]], 0)
    np.testing.assert_array_equal(high[[1, 3]], (height - 1, width - 1))
    assert np.min(areas) < 0.1
    assert np.max(areas) >= 0.5


def test_boxes_of_cutmix_have_the_size_distribution_of_the_authors() -> None:
    side, alpha, count = 8, 1.0, 3000
    rng = np.random.default_rng(0)
    expected = []
    for share in rng.beta(alpha, alpha, count):
        length = int(side * np.sqrt(1 - share))
        y, x = rng.integers(0, side, 2)
        ends = [np.clip([c - length // 2, c + length // 2], 0, side) for c in (y, x)]
        expected.append(np.prod([np.diff(end)[0] for end in ends]) / side**2)
    pair = jnp.zeros((2, side, side, 1)), jnp.arange(2)
    keys = jax.random.split(jax.random.key(0), count)
    soft = jax.jit(jax.vmap(lambda key: augment.cutmix(key, *pair, alpha, 2)[1][0, 1]))(keys)
    assert stats.ks_2samp(np.asarray(soft), np.float32(expected)).pvalue > 0.01


def test_jitter_shifts_each_image_and_scales_it_about_its_mean(normalized: np.ndarray) -> None:
    jittered = np.asarray(augment.jitter(jax.random.key(0), jnp.asarray(normalized), 0.2, 0.5))
    means, stds = (a.mean((1, 2, 3), keepdims=True) for a in (normalized, jittered))
    offsets = stds - means
    factors = jittered.std((1, 2, 3), keepdims=True) / normalized.std((1, 2, 3), keepdims=True)
    expected = means + factors * (normalized - means) + offsets
    np.testing.assert_allclose(jittered, expected, atol=1e-5)


def test_offset_and_factor_of_jitter_are_uniform_and_independent() -> None:
    image = jnp.asarray([-1.0, 1.0]).reshape(1, 1, 2, 1) + 3
    jittered = augment.jitter(jax.random.key(0), jnp.repeat(image, 2000, axis=0), 0.2, 0.5)
    dark, light = np.asarray(jittered, float).reshape(2000, 2).T
    offsets, factors = (light + dark) / 2 - 3, (light - dark) / 2
    assert stats.kstest(offsets, stats.uniform(-0.2, 0.4).cdf).pvalue > 0.01
    assert stats.kstest(factors, stats.uniform(0.5, 1).cdf).pvalue > 0.01
    assert abs(np.corrcoef(offsets, factors)[0, 1]) < 0.06


def test_jitter_with_zero_range_changes_nothing(normalized: np.ndarray) -> None:
    unchanged = augment.jitter(jax.random.key(0), jnp.asarray(normalized), 0, 0)
    np.testing.assert_array_equal(unchanged, normalized)


@pytest.mark.parametrize("size", [3, 5, 6, 11])
def test_resize_equals_pillow(normalized: np.ndarray, size: int) -> None:
    resized = augment.resize(jnp.asarray(normalized[:4]), size)
    for image, small in zip(normalized[:4], np.asarray(resized), strict=True):
        for channel in range(3):
            picture = Image.fromarray(image[..., channel])
            expected = picture.resize((size, size), Image.Resampling.BILINEAR)
            np.testing.assert_allclose(small[..., channel], expected, atol=1e-5)


def test_augmentation_under_jit_keeps_the_type_and_depends_on_the_key() -> None:
    images = jnp.asarray(np.random.default_rng(0).normal(size=(8, 6, 6, 3)), jnp.bfloat16)
    labels = jnp.arange(8) % 3

    @jax.jit
    def recipe(key: jax.Array) -> Any:
        keys = jax.random.split(key, 4)
        x = augment.alternating_flip(keys[0], images, jnp.arange(8), 1)
        x = augment.cutout(keys[1], x, 3)
        x = augment.resize(augment.jitter(keys[2], x, 0.1, 0.2), 4)
        mixups = augment.mixup(keys[3], x, labels, 0.3, 3)
        return mixups, augment.cutmix(keys[3], x, labels, 1.0, 3)

    with jax.numpy_dtype_promotion("strict"):
        once, again, other = (recipe(jax.random.key(seed)) for seed in (0, 0, 1))
    for mixed, soft in once:
        chex.assert_shape(mixed, (8, 4, 4, 3))
        chex.assert_type(mixed, jnp.bfloat16)
        chex.assert_type(soft, jnp.float32)
    chex.assert_trees_all_equal(once, again)
    assert all((a != b).any() for a, b in zip(once[0], other[0], strict=True))
