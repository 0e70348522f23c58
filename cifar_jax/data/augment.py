"""Augmentation of batches on the device, inside jit; everything random follows from a key.

What moves pixels takes them as bytes, what changes their values takes them normalized.
"""

from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from cifar_jax.ops import platform

Fill = Literal["zeros", "reflect"]
"""What lies around an image: zeros (black, in bytes), or its mirror image without the edge."""


def augment(
    key: jax.Array, images: jax.Array, crop_padding: int, flip: bool, fill: Fill = "zeros"
) -> jax.Array:
    """Random crops of the padded images, and mirror images of half of them.

    Args:
      key: of this batch.
      images: uint8 `[N, H, W, C]`.
      crop_padding: pixels added on each side; the crop has the original size.
      flip: mirror each image with probability 1/2.
      fill: of the added pixels.
    """
    side = 2 * crop_padding + 1
    ways = jax.random.randint(key, (len(images),), 0, side * side * (1 + flip))
    ways, down = jnp.divmod(ways, side)
    mirrored, across = jnp.divmod(ways, side)
    if crop_padding:
        images = crop(images, down - crop_padding, across - crop_padding, crop_padding, fill)
    return _mirror(images, mirrored) if flip else images


def alternating_flip(
    key: jax.Array, images: jax.Array, indices: jax.Array, epoch: jax.Array | int
) -> jax.Array:
    """Mirror images of a half chosen at random in the first epoch, and then by turns.

    An image is shown in every epoch the other way round than in the one before, so that any two
    epochs in a row show both of its sides (K. Jordan, arXiv:2404.00498).

    Args:
      key: of the run, the same in all of its steps, and of nothing else in it.
      images: uint8 or float `[N, H, W, C]`.
      indices: int32 `[N]`, the images' places in the training set.
      epoch: int32, counted from 0.
    """

    def first(index: jax.Array) -> jax.Array:
        return jax.random.bernoulli(jax.random.fold_in(key, index)).astype(jnp.int32)

    return _mirror(images, (jax.vmap(first)(indices) + epoch) % 2)


def _mirror(images: jax.Array, mirrored: jax.Array) -> jax.Array:
    return jnp.where(mirrored[:, None, None, None], images[:, :, ::-1], images)


def crop(
    images: jax.Array, down: jax.Array, across: jax.Array, largest: int, fill: Fill = "zeros"
) -> jax.Array:
    """Windows of the padded images, as large as these.

    Args:
      images: uint8 `[N, H, W, C]`.
      down: int32 `[N]`, each window's first row, from -largest to largest.
      across: int32 `[N]`, its first column, likewise.
      largest: pixels that a window may reach beyond the image.
      fill: of what lies there. `reflect` is that of `numpy.pad`.
    """
    forms = {"tpu": crop_by_products, "default": crop_by_slices}
    given = {name: partial(form, largest=largest, fill=fill) for name, form in forms.items()}
    return platform.dispatch(platform.forced_platform(), images, down, across, **given)


def crop_by_slices(
    images: jax.Array, down: jax.Array, across: jax.Array, largest: int, fill: Fill = "zeros"
) -> jax.Array:
    """`crop`, image by image."""
    sides = ((0, 0), (largest, largest), (largest, largest), (0, 0))
    padded = jnp.pad(images, sides, mode="reflect" if fill == "reflect" else "constant")

    def window(image: jax.Array, down: jax.Array, across: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(image, (largest + down, largest + across, 0), images.shape[1:])

    return jax.vmap(window)(padded, down, across)


def crop_by_products(
    images: jax.Array, down: jax.Array, across: jax.Array, largest: int, fill: Fill = "zeros"
) -> jax.Array:
    """`crop` for a TPU, which would cut out one image after the other.

    Rows and columns are chosen by products with matrices of zeros and ones, which need no padding.
    These are exact for bytes, in bfloat16 too.
    """
    del largest

    def chosen(first: jax.Array, side: int) -> jax.Array:
        places = first[:, None] + jnp.arange(side)
        if fill == "reflect":
            there_and_back = max(2 * (side - 1), 1)
            places %= there_and_back
            places = jnp.minimum(places, there_and_back - places)
        return jax.nn.one_hot(places, side)  # zeros for places outside

    _, height, width, _ = images.shape
    rows = jnp.einsum("nyh,nhwc->nywc", chosen(down, height), images.astype(jnp.float32))
    return jnp.einsum("nxw,nywc->nyxc", chosen(across, width), rows).astype(images.dtype)


def cutout(key: jax.Array, images: jax.Array, size: int) -> jax.Array:
    """Images with a square of zeros, which is the mean of normalized ones.

    Its centre is any pixel of the image, so that it may lie in part outside (T. DeVries and
    G. Taylor, arXiv:1708.04552).

    Args:
      key: of this batch.
      images: float `[N, H, W, C]`, normalized.
      size: pixels along a side of the square.
    """
    count, height, width, _ = images.shape
    down, across = jax.random.randint(key, (2, count), 0, jnp.array([[height], [width]]))
    return jnp.where(_box(images, down, across, size, size), 0, images)


def mixup(
    key: jax.Array, images: jax.Array, labels: jax.Array, alpha: float, classes: int
) -> tuple[jax.Array, jax.Array]:
    """Each image mixed with the one before it in the batch, and so their labels.

    The batch is shuffled, so its order gives random partners. The share is drawn once a batch, from
    Beta(alpha, alpha), as in the authors' own code (H. Zhang et al., arXiv:1710.09412).

    Args:
      key: of this batch.
      images: float `[N, H, W, C]`, normalized.
      labels: int32 `[N]`.
      alpha: above 0; the larger, the more even the mixtures.
      classes: how many there are.

    Returns:
      Images, and probabilities of classes, float32 `[N, classes]`.
    """
    share = _beta(key, alpha)
    mixed = _mix(share.astype(images.dtype), images)
    return mixed, _mix(share, jax.nn.one_hot(labels, classes))


def cutmix(
    key: jax.Array, images: jax.Array, labels: jax.Array, alpha: float, classes: int
) -> tuple[jax.Array, jax.Array]:
    """Images with a box from the one before in the batch; labels mixed by the box's area.

    As in the authors' own code (S. Yun et al., arXiv:1905.04899) the box is the same in the whole
    batch. Of the image it has the share 1 - lambda, lambda from Beta(alpha, alpha), before what
    lies outside is cut off; the labels are mixed by what is left. Partners are as in `mixup`.

    Args:
      key: of this batch.
      images: float `[N, H, W, C]`.
      labels: int32 `[N]`.
      alpha: above 0; 1 makes all areas equally likely.
      classes: how many there are.

    Returns:
      Images, and probabilities of classes, float32 `[N, classes]`.
    """
    _, height, width, _ = images.shape
    share_key, place_key = jax.random.split(key)
    side = jnp.sqrt(1 - _beta(share_key, alpha))
    # Twice the whole pixels in half a side, as the authors round.
    rows, columns = (2 * (side * extent / 2).astype(jnp.int32) for extent in (height, width))
    down, across = jax.random.randint(place_key, (2, 1), 0, jnp.array([[height], [width]]))
    box = _box(images, down, across, rows, columns)
    share = 1 - box.mean(dtype=jnp.float32)
    mixed = jnp.where(box, jnp.roll(images, 1, axis=0), images)
    return mixed, _mix(share, jax.nn.one_hot(labels, classes))


def _beta(key: jax.Array, alpha: float) -> jax.Array:
    """One of 4,096 quantiles of Beta(alpha, alpha): `jax.random.beta` takes seconds to compile."""
    from scipy import special  # which takes a while to import, and few runs need

    quantiles = special.betaincinv(alpha, alpha, (np.arange(4096) + 0.5) / 4096)
    return jax.random.choice(key, jnp.asarray(quantiles, jnp.float32))


def _mix(share: jax.Array, rows: jax.Array) -> jax.Array:
    """`share` of each row and the rest of the row before."""
    return share * rows + (1 - share) * jnp.roll(rows, 1, axis=0)


def _box(
    images: jax.Array,
    down: jax.Array,
    across: jax.Array,
    rows: jax.Array | int,
    columns: jax.Array | int,
) -> jax.Array:
    """Whether a pixel lies in a box around (down, across), int32 `[n]`: bool `[n, H, W, 1]`.

    From half of its rows (columns) above its centre, rounded down, on.
    """

    def within(centre: jax.Array, length: jax.Array | int, side: int) -> jax.Array:
        first = (centre - length // 2)[:, None]
        return (first <= jnp.arange(side)) & (jnp.arange(side) < first + length)

    _, height, width, _ = images.shape
    inside = within(down, rows, height)[:, :, None] & within(across, columns, width)[:, None]
    return inside[..., None]


def jitter(key: jax.Array, images: jax.Array, brightness: float, contrast: float) -> jax.Array:
    """Each image brighter or darker, and of more or less contrast.

    A pixel becomes `mean + factor · (pixel - mean) + offset`, with the mean of all the image's own
    values, the factor from the uniform distribution on 1 ± contrast and the offset from that on
    ± brightness. The offset is as in hiverge/cifar10-speedrun, where the factor multiplies what has
    been shifted, about the mean of the data set.

    Args:
      key: of this batch.
      images: float `[N, H, W, C]`, normalized.
      brightness: the largest offset, in standard deviations of the data set.
      contrast: the largest change of the factor.
    """
    ranges = jnp.array([[brightness], [contrast]], jnp.float32)
    offset, change = ranges * jax.random.uniform(key, (2, len(images)), minval=-1, maxval=1)
    # Of one row each: arithmetic on vectors of three does not vectorise.
    rows = images.reshape(len(images), -1).astype(jnp.float32)
    offset -= change * rows.mean(1)
    rows = (1 + change[:, None]) * rows + offset[:, None]
    return rows.astype(images.dtype).reshape(images.shape)


def resize(images: jax.Array, size: int) -> jax.Array:
    """Images float `[N, H, W, C]` at another size, `[N, size, size, C]`.

    Linear between pixels; where it makes images smaller, the filter is wider by as much (as
    Pillow's `BILINEAR`, and `torch.nn.functional.interpolate(antialias=True)`).
    """
    count, _, _, channels = images.shape
    return jax.image.resize(images, (count, size, size, channels), "linear", antialias=True)
