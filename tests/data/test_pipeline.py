"""Test the order, selection and normalization of a batch's images against NumPy."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cifar_jax.data import pipeline


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(1, 256, (64, 6, 5, 3), np.uint8)


@pytest.mark.parametrize(("count", "batch_size"), [(20, 4), (22, 4), (5, 5), (7, 5)])
def test_dropping_takes_every_image_at_most_once(count: int, batch_size: int) -> None:
    order = pipeline.epoch_order(jax.random.key(0), count, batch_size, "drop")
    chex.assert_shape(order, (count // batch_size, batch_size))
    chex.assert_type(order, jnp.int32)
    assert len(set(np.asarray(order).ravel().tolist())) == order.size
    assert 0 <= order.min() <= order.max() < count


@pytest.mark.parametrize(("count", "batch_size"), [(20, 4), (22, 4), (5, 5), (7, 5)])
def test_wrapping_takes_every_image_and_fills_the_last_batch_from_the_start(
    count: int, batch_size: int
) -> None:
    order = np.asarray(pipeline.epoch_order(jax.random.key(0), count, batch_size, "wrap"))
    assert order.shape == (-(-count // batch_size), batch_size)
    flat = order.ravel()
    np.testing.assert_array_equal(np.sort(flat[:count]), np.arange(count))
    np.testing.assert_array_equal(flat[count:], flat[: flat.size - count])
    # No batch contains an image twice.
    assert all(len(set(row)) == batch_size for row in order.tolist())


def test_order_is_shuffled_and_depends_only_on_the_key() -> None:
    key = jax.random.key(0)
    first, again = (pipeline.epoch_order(key, 100, 10, "drop") for _ in range(2))
    other = pipeline.epoch_order(jax.random.fold_in(key, 1), 100, 10, "drop")
    np.testing.assert_array_equal(first, again)
    assert (np.asarray(first).ravel() != np.arange(100)).mean() > 0.8
    assert (np.asarray(first) != np.asarray(other)).mean() > 0.8


@pytest.mark.usefixtures("each_platform")
def test_take_returns_rows_in_the_order_of_the_indices() -> None:
    rows = np.arange(12, dtype=np.uint8).reshape(4, 3)
    order = np.array([2, 0, 3, 2], np.int32)
    taken = pipeline.take(jnp.asarray(rows), jnp.asarray(order))
    np.testing.assert_array_equal(taken, rows[order])
    chex.assert_type(taken, jnp.uint8)


def test_normalized_images_have_zero_mean_and_unit_variance(images: np.ndarray) -> None:
    channels = images.reshape(-1, 3) / 255
    mean, std = channels.mean(0), channels.std(0)
    normalized = pipeline.normalize(jnp.asarray(images), mean.tolist(), std.tolist())
    chex.assert_type(normalized, jnp.float32)
    expected = (images / 255 - mean) / std
    np.testing.assert_allclose(normalized, expected, atol=2e-6)
    np.testing.assert_allclose(np.mean(normalized, (0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(np.std(normalized, (0, 1, 2)), 1, atol=1e-5)


def test_normalize_computes_in_float32_for_any_output_type(images: np.ndarray) -> None:
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    wide = pipeline.normalize(jnp.asarray(images), mean, std)
    narrow = pipeline.normalize(jnp.asarray(images), mean, std, jnp.bfloat16)
    chex.assert_type(narrow, jnp.bfloat16)
    np.testing.assert_array_equal(narrow, wide.astype(jnp.bfloat16))
