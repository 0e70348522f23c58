"""Augmentation of batches on the device, inside jit; everything random follows from a key."""

import jax
import jax.numpy as jnp

from cifar_jax.ops import platform


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
