"""The batch of a step: images gathered, augmented and normalized on the device, inside jit."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cifar_jax import models
from cifar_jax.data import Dataset, Split, augment, pipeline
from cifar_jax.training.plan import StepVariant
from cifar_jax.training.schedules import StepInfo

CustomAugmentation = Callable[[jax.Array, jax.Array], jax.Array]
"""From a key and uint8 images `[N, 32, 32, 3]` to images of the same shape and type."""

_FLIP_STREAM = np.uint32(2**32 - 1)
"""Folded into the augmentation stream for alternating flips; no step has this number."""


class TrainData(NamedTuple):
    """The training images, all of them on every device.

    An image is one row: a TPU would pad a last axis of 3 to 128, and copy all images into another
    layout in each call.
    """

    images: jax.Array
    """uint8 `[N, 32 * 32 * 3]`."""
    labels: jax.Array
    """int32 `[N]`."""


def rows(split: Split) -> tuple[np.ndarray, np.ndarray]:
    """Return the images of a split as rows, and its labels."""
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
    """Return the images and labels of a step.

    Args:
      dataset: provides mean, standard deviation and classes.
      variant: image size and augmentation.
      precision: type of the images.
      data: the training images.
      indices: int32 `[N]`, the images of the batch.
      key: the run's augmentation stream.
      info: the place of the step in the run.
      custom: a custom augmentation, applied after crop and flip.

    Returns:
      Normalized images `[N, size, size, 3]`, and labels: int32 `[N]`, or class probabilities,
      float32 `[N, classes]`, if images are mixed.
    """
    settings, step_key = variant.augmentation, jax.random.fold_in(key, info.step)
    images = pipeline.take(data.images, indices).reshape(-1, *models.IMAGE_SHAPE)
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
    # `augment` splits the step's key, which uses the numbers 0 and 1.
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
    """Return uint8 images with zero mean and unit variance over the training images."""
    return pipeline.normalize(jnp.asarray(images), dataset.mean, dataset.std, jnp.dtype(precision))
