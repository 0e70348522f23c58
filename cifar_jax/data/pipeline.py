"""Batches on the device: their order, their images, and normalization, all inside jit.

The data set lies on the device as uint8; everything random follows from a key.
"""

from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from cifar_jax.ops import platform


def steps_per_epoch(images: int, batch_size: int, last_batch: Literal["drop", "wrap"]) -> int:
    """Updates in an epoch of `images` images."""
    return images // batch_size if last_batch == "drop" else -(-images // batch_size)


def epoch_order(
    key: jax.Array, images: int, batch_size: int, last_batch: Literal["drop", "wrap"]
) -> jax.Array:
    """A shuffled epoch: int32 `[steps, batch_size]`, indices of images.

    Each image comes once; with `wrap` the last batch is filled up from the epoch's beginning.
    """
    steps = steps_per_epoch(images, batch_size, last_batch)
    order = jax.random.permutation(key, images).astype(jnp.int32)
    return jnp.resize(order, (steps, batch_size))


def take(rows: jax.Array, indices: jax.Array) -> jax.Array:
    """`rows[indices]`: of `[N, D]` those that int32 `[n]` names, `[n, D]`.

    On a CPU XLA would fuse the indexing into the copies that a convolution makes of the images,
    and do it again for each of them; it does not fuse a loop.
    """

    def one_by_one(rows: jax.Array, indices: jax.Array) -> jax.Array:
        return jax.lax.map(lambda i: jax.lax.dynamic_index_in_dim(rows, i, keepdims=False), indices)

    def at_once(rows: jax.Array, indices: jax.Array) -> jax.Array:
        return rows[indices]

    return platform.dispatch(platform.forced_platform(), rows, indices, cpu=one_by_one, default=at_once)


def normalize(
    images: jax.Array, mean: Sequence[float], std: Sequence[float], dtype: Any = jnp.float32
) -> jax.Array:
    """uint8 `[..., H, W, C]`, 0..255, to zero mean and unit variance a channel.

    `mean` and `std` are of 0..1. They are repeated over an image's row, since arithmetic on vectors
    of three does not vectorise.
    """
    width = images.shape[-2]
    mean32, std32 = (np.tile(np.asarray(channels, np.float32), width) for channels in (mean, std))
    rows = images.reshape(*images.shape[:-2], -1).astype(jnp.float32)
    rows = rows * (1 / (255 * std32)) - mean32 / std32
    return rows.astype(dtype).reshape(images.shape)
