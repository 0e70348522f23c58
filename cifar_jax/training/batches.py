"""The batch of a step: images taken, augmented and normalized, and labels; all inside jit."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cifar_jax import models
from cifar_jax.data import Dataset, Split, augment, pipeline
from cifar_jax.training.plan import StepVariant
from cifar_jax.training.schedules import StepInfo


class TrainData(NamedTuple):
    """The training images, whole on every device.

    Each is a row: a TPU pads the last axis to 128, and would copy all the images into a layout
    that it can gather from, four times their size, in each call.
    """

    images: jax.Array  # uint8 [N, 32 · 32 · 3]
    labels: jax.Array  # int32 [N]


def rows(split: Split) -> tuple[np.ndarray, np.ndarray]:
    """What `TrainData` holds of a split."""
    return split.images.reshape(len(split.images), -1), split.labels


def make_batch(
    dataset: Dataset,
    stage: StepVariant,
    precision: str,
    data: TrainData,
    indices: jax.Array,
    key: jax.Array,
    moment: StepInfo,
) -> tuple[jax.Array, jax.Array]:
    """Images and labels of a step, as its stage has them.

    Args:
      dataset: for mean, deviation and classes.
      stage: what is done to images.
      precision: their type.
      data: the training images.
      indices: int32 `[N]`, which of them.
      key: of all that is random in the run's images.
      moment: where in the run it is.

    Returns:
      Float images `[N, size, size, 3]`; labels int32 `[N]`, or where images are mixed
      probabilities, float32 `[N, classes]`.
    """
    how, step_key = stage.augmentation, jax.random.fold_in(key, moment.step)
    images = pipeline.take(data.images, indices).reshape(-1, *models.IMAGE_SHAPE)
    labels = data.labels[indices]
    images = augment.augment(
        step_key, images, how.crop_padding, flip=how.flip is True, fill=how.crop_fill
    )
    if how.flip == "alternating":
        flip_key = jax.random.fold_in(key, np.uint32(2**32 - 1))  # no step's
        images = augment.alternating_flip(flip_key, images, indices, moment.epoch)
    images = normalize(images, dataset, precision)

    # Numbers 0 and 1 make the keys into which `augment` splits this one.
    jitter_key, cutout_key, mix_key = (jax.random.fold_in(step_key, part) for part in (2, 3, 4))
    if how.brightness or how.contrast:
        images = augment.jitter(jitter_key, images, how.brightness, how.contrast)
    if how.cutout:
        images = augment.cutout(cutout_key, images, how.cutout)
    if stage.image_size != images.shape[1]:
        images = augment.resize(images, stage.image_size)
    classes = len(dataset.classes)
    if how.mixup:
        return augment.mixup(mix_key, images, labels, how.mixup, classes)
    if how.cutmix:
        return augment.cutmix(mix_key, images, labels, how.cutmix, classes)
    return images, labels


def normalize(
    images: jax.Array | np.ndarray, dataset: Dataset, precision: str = "float32"
) -> jax.Array:
    """uint8 images to zero mean and unit variance over the training images."""
    return pipeline.normalize(jnp.asarray(images), dataset.mean, dataset.std, jnp.dtype(precision))
