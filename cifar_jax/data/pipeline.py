"""The order, selection and normalization of batches on the device, inside jit."""

from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from cifar_jax.ops import platform


def steps_per_epoch(images: int, batch_size: int, last_batch: Literal["drop", "wrap"]) -> int:
    """Return the number of updates in an epoch."""
    return images // batch_size if last_batch == "drop" else -(-images // batch_size)


def epoch_order(
    key: jax.Array, images: int, batch_size: int, last_batch: Literal["drop", "wrap"]
) -> jax.Array:
    """Return a random order of the images, int32 `[steps, batch_size]`.

    Each image occurs once. With `wrap` the last batch is filled with the first images of the order.
    """
    steps = steps_per_epoch(images, batch_size, last_batch)
    order = jax.random.permutation(key, images).astype(jnp.int32)
    return jnp.resize(order, (steps, batch_size))


def take(rows: jax.Array, indices: jax.Array) -> jax.Array:
    """Return `rows[indices]`, for `rows` `[N, D]` and `indices` int32 `[n]`.

    On a CPU this is a loop, which XLA does not fuse. It would fuse an indexing operation into the
    convolution that follows, and index the images again for each copy that the convolution makes.
    """

    def one_by_one(rows: jax.Array, indices: jax.Array) -> jax.Array:
        return jax.lax.map(lambda i: jax.lax.dynamic_index_in_dim(rows, i, keepdims=False), indices)

    def at_once(rows: jax.Array, indices: jax.Array) -> jax.Array:
        return rows[indices]

    return platform.dispatch(
        platform.forced_platform(), rows, indices, cpu=one_by_one, default=at_once
    )


def normalize(
    images: jax.Array, mean: Sequence[float], std: Sequence[float], dtype: Any = jnp.float32
) -> jax.Array:
    """Normalize uint8 images `[..., H, W, C]` to zero mean and unit variance per channel.

    `mean` and `std` are for values in 0..1. They are repeated over a row of pixels, since
    arithmetic on vectors of three does not vectorize.
    """
    width = images.shape[-2]
    mean32, std32 = (np.tile(np.asarray(channels, np.float32), width) for channels in (mean, std))
    rows = images.reshape(*images.shape[:-2], -1).astype(jnp.float32)
    rows = rows * (1 / (255 * std32)) - mean32 / std32
    return rows.astype(dtype).reshape(images.shape)
