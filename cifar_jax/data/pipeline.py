"""Batches on the device: order, augmentation and normalisation, all inside jit.

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

    return platform.choose(platform.named(), rows, indices, cpu=one_by_one, default=at_once)


def augment(key: jax.Array, images: jax.Array, crop_padding: int, flip: bool) -> jax.Array:
    """Random crops of the zero-padded images, and mirror images of half of them.

    Args:
      key: of this batch.
      images: uint8 `[N, H, W, C]`.
      crop_padding: pixels added on each side; the crop has the original size.
      flip: mirror each image with probability 1/2.
    """
    side = 2 * crop_padding + 1
    ways = jax.random.randint(key, (len(images),), 0, side * side * (1 + flip))
    ways, down = jnp.divmod(ways, side)
    mirrored, across = jnp.divmod(ways, side)
    if crop_padding:
        images = crop(images, down - crop_padding, across - crop_padding)
    if flip:
        images = jnp.where(mirrored[:, None, None, None], images[:, :, ::-1], images)
    return images


def crop(images: jax.Array, down: jax.Array, across: jax.Array) -> jax.Array:
    """Windows of the zero-padded images, as large as these.

    Args:
      images: uint8 `[N, H, W, C]`.
      down: int32 `[N]`, each window's first row, from -H to H.
      across: int32 `[N]`, its first column, from -W to W.
    """
    forms = {"tpu": crop_by_products, "default": crop_by_slices}
    return platform.choose(platform.named(), images, down, across, **forms)


def crop_by_slices(images: jax.Array, down: jax.Array, across: jax.Array) -> jax.Array:
    """`crop`, image by image."""
    _, height, width, channels = images.shape
    padded = jnp.pad(images, ((0, 0), (height, height), (width, width), (0, 0)))

    def window(image: jax.Array, down: jax.Array, across: jax.Array) -> jax.Array:
        corner = (height + down, width + across, 0)
        return jax.lax.dynamic_slice(image, corner, (height, width, channels))

    return jax.vmap(window)(padded, down, across)


def crop_by_products(images: jax.Array, down: jax.Array, across: jax.Array) -> jax.Array:
    """`crop` for a TPU, which would cut out one image after the other.

    Rows and columns are chosen by products with matrices of zeros and ones. These are exact for
    bytes, in bfloat16 too.
    """
    _, height, width, _ = images.shape
    rows = jax.nn.one_hot(down[:, None] + jnp.arange(height), height)
    columns = jax.nn.one_hot(across[:, None] + jnp.arange(width), width)
    chosen = jnp.einsum("nyh,nhwc->nywc", rows, images.astype(jnp.float32))
    return jnp.einsum("nxw,nywc->nyxc", columns, chosen).astype(images.dtype)


def normalise(
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
