"""Make the batch of a train step: gather, augment and normalize images on the device."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cifar_jax.data import Dataset, Split, augment, pipeline
from cifar_jax.training.plan import StepVariant
from cifar_jax.training.schedules import StepInfo

CustomAugmentation = Callable[[jax.Array, jax.Array], jax.Array]
"""Function from a random key and uint8 images `[N, H, W, 3]` to augmented images of the same shape
and type."""

_FLIP_STREAM = np.uint32(2**32 - 1)
"""Number that is folded into the random key for alternating flips. No train step has this
number."""


class TrainData(NamedTuple):
    """The training images and labels. Every device holds all of them.

    Each image is stored as one row. If the last axis were the 3 channels, a TPU would pad it to
    128, and would copy all images into another layout in each call.
    """

    images: jax.Array
    """Images as rows, uint8 `[N, H * W * 3]`."""
    labels: jax.Array
    """Classes, int32 `[N]`."""


def rows(split: Split) -> tuple[np.ndarray, np.ndarray]:
    """Return the images of a split, each as one row, and the labels."""
    return split.images.reshape(len(split.images), -1), split.labels


def make_batch(
    dataset: Dataset,
    variant: StepVariant,
    precision: str,
    data: TrainData,
    indices: jax.Array,
    key: jax.Array,
    info: StepInfo,
    custom: CustomAugmentation | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Return the images and labels of a train step.

    Args:
      dataset: provides the image shape, the mean, the standard deviation and the classes.
      variant: image size and augmentation of the epoch.
      precision: data type of the returned images, "float32" or "bfloat16".
      data: the training images and labels.
      indices: indices of the images in the batch, int32 `[N]`.
      key: random key for augmentation. This function folds the number of the step into the key.
      info: number of the step, its epoch, and the number of steps in the run.
      custom: a custom augmentation, applied after crop and flip.

    Returns:
      Normalized images `[N, size, size, 3]`, and their labels. The labels are classes, int32 `[N]`.
      With mixup or cutmix they are class probabilities, float32 `[N, classes]`.
    """
    settings, step_key = variant.augmentation, jax.random.fold_in(key, info.step)
    images = pipeline.take(data.images, indices).reshape(-1, *dataset.image_shape)
    labels = data.labels[indices]
    images = augment.augment(
        step_key,
        images,
        settings.crop_padding,
        flip=settings.flip is True,
        fill=settings.crop_fill,
    )
    if settings.flip == "alternating":
        flip_key = jax.random.fold_in(key, _FLIP_STREAM)
        images = augment.alternating_flip(flip_key, images, indices, info.epoch)
    # Start at 2, because `augment.augment` already derives keys 0 and 1 from `step_key`.
    jitter_key, cutout_key, mix_key, custom_key = (
        jax.random.fold_in(step_key, number) for number in (2, 3, 4, 5)
    )
    if custom:
        images = custom(custom_key, images)
    images = normalize(images, dataset, precision)

    if settings.brightness or settings.contrast:
        images = augment.jitter(jitter_key, images, settings.brightness, settings.contrast)
    if settings.cutout:
        images = augment.cutout(cutout_key, images, settings.cutout)
    if variant.image_size != images.shape[1]:
        images = augment.resize(images, variant.image_size)
    classes = len(dataset.classes)
    if settings.mixup:
        return augment.mixup(mix_key, images, labels, settings.mixup, classes)
    if settings.cutmix:
        return augment.cutmix(mix_key, images, labels, settings.cutmix, classes)
    return images, labels


def normalize(
    images: jax.Array | np.ndarray, dataset: Dataset, precision: str = "float32"
) -> jax.Array:
    """Return images normalized with the mean and standard deviation of the data set.

    Args:
      images: uint8 `[..., H, W, C]`.
      dataset: provides the mean and the standard deviation of each channel.
      precision: data type of the result, "float32" or "bfloat16".
    """
    return pipeline.normalize(jnp.asarray(images), dataset.mean, dataset.std, jnp.dtype(precision))
