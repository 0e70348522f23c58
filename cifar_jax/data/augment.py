"""Augment batches of images on the device, inside `jax.jit`.

Images have the shape `[N, H, W, C]`. Labels are int32 `[N]`. `augment`, `crop` and
`alternating_flip` take uint8 images. The other functions take normalized float images. The argument
`key` determines all random choices. Each batch has a new key, except in `alternating_flip`.
"""

from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from cifar_jax.ops import platform

Fill = Literal["zeros", "reflect"]
"""How images are padded: with zeros, or with a reflection that does not repeat the edge pixels."""


def augment(
    key: jax.Array, images: jax.Array, crop_padding: int, flip: bool, fill: Fill = "zeros"
) -> jax.Array:
    """Pad each image, crop it at a random position, and mirror it at random.

    Args:
      key: random key of the batch.
      images: uint8 `[N, H, W, C]`.
      crop_padding: number of pixels to add on each side. Crops have the original size.
      flip: whether to mirror each image with probability 1/2.
      fill: content of the padding.
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
    """Mirror each image in every second epoch.

    A random half of the images is mirrored in even epochs, and the other half in odd epochs. Two
    consecutive epochs therefore show both versions of each image (K. Jordan, arXiv:2404.00498).

    Args:
      key: a random key, which must be the same in all steps of a run.
      images: uint8 or float `[N, H, W, C]`.
      indices: int32 `[N]`, positions of the images in the training set.
      epoch: int32, number of the epoch, counted from 0.
    """

    def in_first_epoch(index: jax.Array) -> jax.Array:
        return jax.random.bernoulli(jax.random.fold_in(key, index)).astype(jnp.int32)

    return _mirror(images, (jax.vmap(in_first_epoch)(indices) + epoch) % 2)


def _mirror(images: jax.Array, mirrored: jax.Array) -> jax.Array:
    return jnp.where(mirrored[:, None, None, None], images[:, :, ::-1], images)


def crop(
    images: jax.Array, down: jax.Array, across: jax.Array, largest: int, fill: Fill = "zeros"
) -> jax.Array:
    """Pad the images, and cut a window of the original size from each.

    Args:
      images: uint8 `[N, H, W, C]`.
      down: int32 `[N]`, number of pixels by which each window is moved down, from -largest to
        largest.
      across: int32 `[N]`, number of pixels by which each window is moved to the right, from
        -largest to largest.
      largest: the largest shift in pixels.
      fill: content of the padding. `reflect` is the mode of `numpy.pad`.
    """
    forms = {"tpu": crop_by_products, "default": crop_by_slices}
    given = {name: partial(form, largest=largest, fill=fill) for name, form in forms.items()}
    return platform.dispatch(platform.forced_platform(), images, down, across, **given)


def crop_by_slices(
    images: jax.Array, down: jax.Array, across: jax.Array, largest: int, fill: Fill = "zeros"
) -> jax.Array:
    """Implement `crop` with one slice per image."""
    sides = ((0, 0), (largest, largest), (largest, largest), (0, 0))
    padded = jnp.pad(images, sides, mode="reflect" if fill == "reflect" else "constant")

    def window(image: jax.Array, down: jax.Array, across: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(image, (largest + down, largest + across, 0), images.shape[1:])

    return jax.vmap(window)(padded, down, across)


def crop_by_products(
    images: jax.Array, down: jax.Array, across: jax.Array, largest: int, fill: Fill = "zeros"
) -> jax.Array:
    """Implement `crop` with matrix products, because a TPU would slice one image at a time.

    Products with matrices of zeros and ones select the rows and columns. The images need no
    padding. The products are exact for uint8 values, even in bfloat16.
    """
    del largest

    def selection(first: jax.Array, side: int) -> jax.Array:
        places = first[:, None] + jnp.arange(side)
        if fill == "reflect":
            period = max(2 * (side - 1), 1)
            places %= period
            places = jnp.minimum(places, period - places)
        return jax.nn.one_hot(places, side)  # Positions outside the image give rows of zeros.

    _, height, width, _ = images.shape
    rows = jnp.einsum("nyh,nhwc->nywc", selection(down, height), images.astype(jnp.float32))
    return jnp.einsum("nxw,nywc->nyxc", selection(across, width), rows).astype(images.dtype)


def cutout(key: jax.Array, images: jax.Array, size: int) -> jax.Array:
    """Set a random square of each image to zero, which is the mean of normalized images.

    `size` is the side of the square in pixels. The center is a random pixel of the image, so part
    of the square may lie outside the image (T. DeVries and G. Taylor, arXiv:1708.04552).
    """
    count, height, width, _ = images.shape
    down, across = jax.random.randint(key, (2, count), 0, jnp.array([[height], [width]]))
    return jnp.where(_box(images, down, across, size, size), 0, images)


def mixup(
    key: jax.Array, images: jax.Array, labels: jax.Array, alpha: float, classes: int
) -> tuple[jax.Array, jax.Array]:
    """Mix each image with the previous image of the batch, and mix their labels.

    Batches are shuffled, so the pairs are random. All pairs of a batch have the same mixing weight.
    The weight is drawn from Beta(alpha, alpha), as in the authors' code (H. Zhang et al.,
    arXiv:1710.09412). A larger `alpha` makes a weight near 1/2 more likely.

    Returns:
      The mixed images, and class probabilities float32 `[N, classes]`.
    """
    weight = _beta(key, alpha)
    mixed = _mix(weight.astype(images.dtype), images)
    return mixed, _mix(weight, jax.nn.one_hot(labels, classes))


def cutmix(
    key: jax.Array, images: jax.Array, labels: jax.Array, alpha: float, classes: int
) -> tuple[jax.Array, jax.Array]:
    """Paste a box of the previous image into each image, and mix the labels by the area of the box.

    All images of a batch have the same box, as in the authors' code (S. Yun et al.,
    arXiv:1905.04899). The box covers the fraction 1 - lambda of the image. lambda is drawn from
    Beta(alpha, alpha). If `alpha` is 1, all fractions are equally likely. If a part of the box is
    outside the image, it is cut off. The remaining area determines how the labels are mixed.

    Returns:
      The mixed images, and class probabilities float32 `[N, classes]`.
    """
    _, height, width, _ = images.shape
    area_key, center_key = jax.random.split(key)
    side = jnp.sqrt(1 - _beta(area_key, alpha))
    # Half of each side of the box is rounded down to whole pixels, as in the authors' code.
    rows, columns = (2 * (side * extent / 2).astype(jnp.int32) for extent in (height, width))
    down, across = jax.random.randint(center_key, (2, 1), 0, jnp.array([[height], [width]]))
    box = _box(images, down, across, rows, columns)
    weight = 1 - box.mean(dtype=jnp.float32)
    mixed = jnp.where(box, jnp.roll(images, 1, axis=0), images)
    return mixed, _mix(weight, jax.nn.one_hot(labels, classes))


def _beta(key: jax.Array, alpha: float) -> jax.Array:
    """Draw a number from Beta(alpha, alpha), as one of 4,096 equally likely quantiles.

    `jax.random.beta` would be slow to compile.
    """
    from scipy import special  # SciPy is slow to import, and few runs need it.

    quantiles = special.betaincinv(alpha, alpha, (np.arange(4096) + 0.5) / 4096)
    return jax.random.choice(key, jnp.asarray(quantiles, jnp.float32))


def _mix(weight: jax.Array, rows: jax.Array) -> jax.Array:
    """Return `weight` times each row plus `1 - weight` times the previous row."""
    return weight * rows + (1 - weight) * jnp.roll(rows, 1, axis=0)


def _box(
    images: jax.Array,
    down: jax.Array,
    across: jax.Array,
    rows: jax.Array | int,
    columns: jax.Array | int,
) -> jax.Array:
    """Return a mask bool `[n, H, W, 1]` that is true inside n boxes.

    `down` and `across`, int32 `[n]`, are the row and the column of each box's center. `rows` and
    `columns` are the height and width of all boxes in pixels.
    """

    def within(center: jax.Array, length: jax.Array | int, side: int) -> jax.Array:
        first = (center - length // 2)[:, None]
        return (first <= jnp.arange(side)) & (jnp.arange(side) < first + length)

    _, height, width, _ = images.shape
    inside = within(down, rows, height)[:, :, None] & within(across, columns, width)[:, None]
    return inside[..., None]


def jitter(key: jax.Array, images: jax.Array, brightness: float, contrast: float) -> jax.Array:
    """Change the brightness and the contrast of each image at random.

    A pixel becomes `mean + factor * (pixel - mean) + offset`. `mean` is the mean of all values of
    the image. The factor is uniform between 1 - contrast and 1 + contrast. The offset is uniform
    between -brightness and brightness, in standard deviations of the data set.

    The code of hiverge/cifar10-speedrun differs in two ways. It multiplies the offset by the
    factor, and it uses the mean of the data set instead of the mean of the image.
    """
    ranges = jnp.array([[brightness], [contrast]], jnp.float32)
    offset, change = ranges * jax.random.uniform(key, (2, len(images)), minval=-1, maxval=1)
    # Flatten each image, because XLA does not vectorize arithmetic over three channels.
    rows = images.reshape(len(images), -1).astype(jnp.float32)
    offset -= change * rows.mean(1)
    rows = (1 + change[:, None]) * rows + offset[:, None]
    return rows.astype(images.dtype).reshape(images.shape)


def resize(images: jax.Array, size: int) -> jax.Array:
    """Resize float images to `[N, size, size, C]`.

    The interpolation is bilinear with antialiasing, as in Pillow's `BILINEAR` and
    `torch.nn.functional.interpolate(antialias=True)`.
    """
    count, _, _, channels = images.shape
    return jax.image.resize(images, (count, size, size, channels), "linear", antialias=True)
