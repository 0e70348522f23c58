"""Order, select and normalize images on the device, inside `jax.jit`."""

from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from cifar_jax.ops import platform


def steps_per_epoch(images: int, batch_size: int, last_batch: Literal["drop", "wrap"]) -> int:
    """Return the number of training steps in an epoch."""
    return images // batch_size if last_batch == "drop" else -(-images // batch_size)


def epoch_order(
    key: jax.Array, images: int, batch_size: int, last_batch: Literal["drop", "wrap"]
) -> jax.Array:
    """Return the indices of the images in random order, int32 `[steps, batch_size]`.

    With `drop`, the images after the last full batch are left out. With `wrap`, the last batch is
    filled up with the first images of the order.
    """
    steps = steps_per_epoch(images, batch_size, last_batch)
    order = jax.random.permutation(key, images).astype(jnp.int32)
    return jnp.resize(order, (steps, batch_size))


def take(rows: jax.Array, indices: jax.Array) -> jax.Array:
    """Return `rows[indices]`. `rows` is `[N, D]`, and `indices` is int32 `[n]`.

    On a CPU, a loop copies the rows one by one. XLA would fuse a single indexing operation with the
    next convolution. A convolution copies its input several times, and each copy would repeat the
    indexing. XLA does not fuse a loop with other operations.
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

    `mean` and `std` refer to pixel values in 0..1. The code repeats them over a row of pixels,
    because XLA does not vectorize arithmetic over three channels.
    """
    width = images.shape[-2]
    mean32, std32 = (np.tile(np.asarray(channels, np.float32), width) for channels in (mean, std))
    rows = images.reshape(*images.shape[:-2], -1).astype(jnp.float32)
    rows = rows * (1 / (255 * std32)) - mean32 / std32
    return rows.astype(dtype).reshape(images.shape)
