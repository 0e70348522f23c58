"""Augmentation of batches on the device, inside jit.

Images are `[N, H, W, C]` and labels int32 `[N]`. `augment`, `crop` and `alternating_flip` take
uint8 images. The functions that change values take normalized float images. All randomness follows
from `key`, a random key of the batch except where noted.
"""

from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from cifar_jax.ops import platform

Fill = Literal["zeros", "reflect"]
"""How images are padded: with zeros, or with their mirror image without the edge pixel."""


def augment(
    key: jax.Array, images: jax.Array, crop_padding: int, flip: bool, fill: Fill = "zeros"
) -> jax.Array:
    """Return random crops of the padded images, half of them mirrored.

    Args:
      key: random key of the batch.
      images: uint8 `[N, H, W, C]`.
      crop_padding: number of pixels added on each side; crops have the original size.
      flip: whether to mirror each image with probability 1/2.
      fill: how images are padded.
    """
    side = 2 * crop_padding + 1
    choice = jax.random.randint(key, (len(images),), 0, side * side * (1 + flip))
    choice, down = jnp.divmod(choice, side)
    mirrored, across = jnp.divmod(choice, side)
    if crop_padding:
        images = crop(images, down - crop_padding, across - crop_padding, crop_padding, fill)
    return _mirror(images, mirrored) if flip else images


def alternating_flip(
    key: jax.Array, images: jax.Array, indices: jax.Array, epoch: jax.Array | int
) -> jax.Array:
    """Mirror a random half of the images in the first epoch, and the other half in the next.

    Two consecutive epochs show both sides of each image (K. Jordan, arXiv:2404.00498).

    Args:
      key: random key of the run, the same in all steps and used for nothing else.
      images: uint8 or float `[N, H, W, C]`.
      indices: int32 `[N]`, positions of the images in the training set.
      epoch: int32, counted from 0.
    """

    def in_first_epoch(index: jax.Array) -> jax.Array:
        return jax.random.bernoulli(jax.random.fold_in(key, index)).astype(jnp.int32)

    return _mirror(images, (jax.vmap(in_first_epoch)(indices) + epoch) % 2)


def _mirror(images: jax.Array, mirrored: jax.Array) -> jax.Array:
    return jnp.where(mirrored[:, None, None, None], images[:, :, ::-1], images)


def crop(
    images: jax.Array, down: jax.Array, across: jax.Array, largest: int, fill: Fill = "zeros"
) -> jax.Array:
    """Return windows of the padded images, of the same size.

    Args:
      images: uint8 `[N, H, W, C]`.
      down: int32 `[N]`, first row of each window, in -largest..largest.
      across: int32 `[N]`, first column of each window, likewise.
      largest: the largest shift.
      fill: how images are padded; `reflect` is that of `numpy.pad`.
    """
    forms = {"tpu": crop_by_products, "default": crop_by_slices}
    given = {name: partial(form, largest=largest, fill=fill) for name, form in forms.items()}
    return platform.dispatch(platform.forced_platform(), images, down, across, **given)


def crop_by_slices(
    images: jax.Array, down: jax.Array, across: jax.Array, largest: int, fill: Fill = "zeros"
) -> jax.Array:
    """Do what `crop` does with one slice per image."""
    sides = ((0, 0), (largest, largest), (largest, largest), (0, 0))
    padded = jnp.pad(images, sides, mode="reflect" if fill == "reflect" else "constant")

    def window(image: jax.Array, down: jax.Array, across: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(image, (largest + down, largest + across, 0), images.shape[1:])

    return jax.vmap(window)(padded, down, across)


def crop_by_products(
    images: jax.Array, down: jax.Array, across: jax.Array, largest: int, fill: Fill = "zeros"
) -> jax.Array:
    """Do what `crop` does with matrix products, since a TPU would slice image by image.

    Products with matrices of zeros and ones select rows and columns without padding. They are exact
    for bytes, even in bfloat16.
    """
    del largest

    def selection(first: jax.Array, side: int) -> jax.Array:
        places = first[:, None] + jnp.arange(side)
        if fill == "reflect":
            period = max(2 * (side - 1), 1)
            places %= period
            places = jnp.minimum(places, period - places)
        return jax.nn.one_hot(places, side)  # Places outside the image give zeros.

    _, height, width, _ = images.shape
    rows = jnp.einsum("nyh,nhwc->nywc", selection(down, height), images.astype(jnp.float32))
    return jnp.einsum("nxw,nywc->nyxc", selection(across, width), rows).astype(images.dtype)


def cutout(key: jax.Array, images: jax.Array, size: int) -> jax.Array:
    """Set a square of each image to zero, the mean of normalized images.

    The center is any pixel, so part of the square may lie outside the image (T. DeVries and
    G. Taylor, arXiv:1708.04552). `size` is the side of the square in pixels.
    """
    count, height, width, _ = images.shape
    down, across = jax.random.randint(key, (2, count), 0, jnp.array([[height], [width]]))
    return jnp.where(_box(images, down, across, size, size), 0, images)


def mixup(
    key: jax.Array, images: jax.Array, labels: jax.Array, alpha: float, classes: int
) -> tuple[jax.Array, jax.Array]:
    """Mix each image and its label with the previous ones of the batch.

    Batches are shuffled, so partners are random. One mixing weight per batch is drawn from
    Beta(alpha, alpha), as in the authors' code (H. Zhang et al., arXiv:1710.09412). Larger `alpha`
    give more even mixtures.

    Returns:
      Images, and class probabilities float32 `[N, classes]`.
    """
    weight = _beta(key, alpha)
    mixed = _mix(weight.astype(images.dtype), images)
    return mixed, _mix(weight, jax.nn.one_hot(labels, classes))


def cutmix(
    key: jax.Array, images: jax.Array, labels: jax.Array, alpha: float, classes: int
) -> tuple[jax.Array, jax.Array]:
    """Paste a box of the previous image into each image, and mix the labels by the area of the box.

    All images of a batch share the box, as in the authors' code (S. Yun et al., arXiv:1905.04899).
    Its area is a fraction 1 - lambda of the image, with lambda from Beta(alpha, alpha). Parts
    outside the image are cut off, and the labels are mixed by the remaining area. With `alpha` 1
    all areas are equally likely.

    Returns:
      Images, and class probabilities float32 `[N, classes]`.
    """
    _, height, width, _ = images.shape
    area_key, center_key = jax.random.split(key)
    side = jnp.sqrt(1 - _beta(area_key, alpha))
    # The authors round half the side to whole pixels.
    rows, columns = (2 * (side * extent / 2).astype(jnp.int32) for extent in (height, width))
    down, across = jax.random.randint(center_key, (2, 1), 0, jnp.array([[height], [width]]))
    box = _box(images, down, across, rows, columns)
    weight = 1 - box.mean(dtype=jnp.float32)
    mixed = jnp.where(box, jnp.roll(images, 1, axis=0), images)
    return mixed, _mix(weight, jax.nn.one_hot(labels, classes))


def _beta(key: jax.Array, alpha: float) -> jax.Array:
    """Draw from 4,096 quantiles of Beta(alpha, alpha): `jax.random.beta` is slow to compile."""
    from scipy import special  # This import is slow, and few runs need it.

    quantiles = special.betaincinv(alpha, alpha, (np.arange(4096) + 0.5) / 4096)
    return jax.random.choice(key, jnp.asarray(quantiles, jnp.float32))


def _mix(weight: jax.Array, rows: jax.Array) -> jax.Array:
    """Return the weighted mean of each row and the previous one."""
    return weight * rows + (1 - weight) * jnp.roll(rows, 1, axis=0)


def _box(
    images: jax.Array,
    down: jax.Array,
    across: jax.Array,
    rows: jax.Array | int,
    columns: jax.Array | int,
) -> jax.Array:
    """Return a mask of the boxes centered at (down, across), int32 `[n]`: bool `[n, H, W, 1]`."""

    def within(center: jax.Array, length: jax.Array | int, side: int) -> jax.Array:
        first = (center - length // 2)[:, None]
        return (first <= jnp.arange(side)) & (jnp.arange(side) < first + length)

    _, height, width, _ = images.shape
    inside = within(down, rows, height)[:, :, None] & within(across, columns, width)[:, None]
    return inside[..., None]


def jitter(key: jax.Array, images: jax.Array, brightness: float, contrast: float) -> jax.Array:
    """Change the brightness and the contrast of each image.

    A pixel becomes `mean + factor * (pixel - mean) + offset`, where `mean` is over all values of
    the image. The factor is uniform in 1 ± contrast, and the offset in ± brightness, in standard
    deviations of the data set. In hiverge/cifar10-speedrun the factor also scales the offset, and
    applies about the mean of the data set.
    """
    ranges = jnp.array([[brightness], [contrast]], jnp.float32)
    offset, change = ranges * jax.random.uniform(key, (2, len(images)), minval=-1, maxval=1)
    # One row per image, since arithmetic on vectors of three does not vectorize.
    rows = images.reshape(len(images), -1).astype(jnp.float32)
    offset -= change * rows.mean(1)
    rows = (1 + change[:, None]) * rows + offset[:, None]
    return rows.astype(images.dtype).reshape(images.shape)


def resize(images: jax.Array, size: int) -> jax.Array:
    """Resize float images to `[N, size, size, C]`.

    Interpolates linearly, with antialiasing, like Pillow's `BILINEAR` and
    `torch.nn.functional.interpolate(antialias=True)`.
    """
    count, _, _, channels = images.shape
    return jax.image.resize(images, (count, size, size, channels), "linear", antialias=True)
