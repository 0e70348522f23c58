"""Data sets in memory, their statistics and digests, and the validation split."""

import hashlib
from typing import NamedTuple

import numpy as np

from cifar_jax.errors import UserError, counted

IMAGE_SHAPE = (32, 32, 3)


class Split(NamedTuple):
    """Part of a data set: `images` uint8 `[N, H, W, 3]` and `labels` int32 `[N]`."""

    images: np.ndarray
    labels: np.ndarray


class Labeled(NamedTuple):
    """Labeled images for evaluation only.

    Attributes:
      name: name of the images for messages.
      images: uint8 `[N, H, W, 3]`.
      labels: int32 `[N]`.
      classes: names of the classes, in the order of the labels. None: the classes have no names.
      notes: messages to the user about the images.
    """

    name: str
    images: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...] | None
    notes: tuple[str, ...] = ()


class Arrays(NamedTuple):
    """The decoded content of a data set. The class `Dataset` describes the fields."""

    classes: tuple[str, ...]
    train: Split
    test: Split
    validation_images: int | None = None
    white: int | None = None
    skipped: tuple[str, ...] = ()


class Dataset(NamedTuple):
    """A data set in memory.

    Attributes:
      name: the name of the data set, such as `cifar10` or `tfds:svhn_cropped`. For a folder or file
        called NAME, it is `folder:NAME` or `npz:NAME`.
      classes: names of the classes, in the order of the labels.
      train: the training images, including the images that `split_validation` holds out.
      test: the test images.
      mean: mean of each color channel over the training images, for pixel values in 0..1.
      std: standard deviation of each color channel over the training images, for values in 0..1.
      fingerprint: SHA-256 of all images and labels in their order; see the function `fingerprint`.
      content: SHA-256 that does not depend on the order of the images; see `content_digest`.
      official: whether images, labels and splits are identical to the published CIFAR-10.
      validation_images: number of images at the end of `train` that are reserved for validation.
        None: the data set has no validation images of its own.
      white: the 16-bit value that became 255, or None if there are no 16-bit images.
      skipped: one message for each unreadable image that was left out.
      notes: lines for the log about the images.
    """

    name: str
    classes: tuple[str, ...]
    train: Split
    test: Split
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    fingerprint: str
    content: str = ""
    official: bool = False
    validation_images: int | None = None
    white: int | None = None
    skipped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and number of channels of the images."""
        height, width, channels = self.train.images.shape[1:]
        return height, width, channels


def split_validation(train: Split, validation: float) -> tuple[Split, Split]:
    """Hold out the last images of a training split for validation.

    Args:
      train: the training split.
      validation: if below 1, the fraction of images to hold out; otherwise the number of images.
        Zero holds out no images.

    Returns:
      The remaining training images and the validation images. Both are views of `train`.

    Raises:
      UserError: `validation` is neither a fraction nor a whole number, is a fraction of less than
        one image, or leaves no training images.
    """
    total = len(train.labels)
    count = round(validation * total) if 0 <= validation < 1 else validation
    number = f"{validation:,.0f}" if float(validation).is_integer() else f"{validation:g}"
    problem = ""
    if not 0 <= count < total:
        problem = f"which leaves nothing to train on: there are {counted(total, 'training image')}"
    elif count != int(count):
        problem = "which is neither a fraction below 1 nor a whole number"
    elif validation and not count:
        problem = f"which is less than one of {counted(total, 'training image')}"
    if problem:
        raise UserError(
            f"data.validation is {number}, {problem}. Set it to a fraction such as 0.1, or "
            f"to a whole number below {total:,}."
        )
    end = total - int(count)
    return (
        Split(train.images[:end], train.labels[:end]),
        Split(train.images[end:], train.labels[end:]),
    )


def channel_statistics(
    images: np.ndarray,
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Return the mean and the standard deviation of each color channel of uint8 images.

    Pixel values are scaled to 0..1. The computation uses integer histograms, so the result is the
    same on every machine.
    """
    counts = np.zeros((3, 256), np.int64)
    for start in range(0, len(images), 1000):
        block = images[start : start + 1000]
        for channel in range(3):
            counts[channel] += np.bincount(block[..., channel].ravel(), minlength=256)
    values = np.arange(256)
    total = max(int(counts[0].sum()), 1)
    sums = [int(row @ values) for row in counts]
    squares = [int(row @ values**2) for row in counts]
    mean = [s / total / 255 for s in sums]
    std = [
        ((total * q - s * s) / total**2) ** 0.5 / 255 for s, q in zip(sums, squares, strict=True)
    ]
    return (mean[0], mean[1], mean[2]), (std[0], std[1], std[2])


def fingerprint(train: Split, test: Split) -> str:
    """Return the SHA-256 of all images and labels.

    The hash covers the training images, training labels, test images and test labels, in this
    order. Images are C-ordered uint8 `[N, H, W, 3]`. Labels are little-endian int32.
    """
    digest = hashlib.sha256()
    for split in (train, test):
        digest.update(np.ascontiguousarray(split.images, np.uint8).data)
        digest.update(np.ascontiguousarray(split.labels, "<i4").data)
    return digest.hexdigest()


def content_digest(train: Split, test: Split) -> str:
    """Return a SHA-256 that does not depend on the order of images within a split.

    Each image is hashed together with its label. Images are C-ordered uint8 `[H, W, 3]`. Labels are
    little-endian int32. The sorted hashes of a split are hashed together. The result is the hash of
    the training hash and the test hash.
    """
    digest = hashlib.sha256()
    for split in (train, test):
        images = np.ascontiguousarray(split.images, np.uint8)
        labels = np.ascontiguousarray(split.labels, "<i4")
        records = (
            hashlib.sha256(image.tobytes() + label.tobytes()).digest()
            for image, label in zip(images, labels, strict=True)
        )
        digest.update(hashlib.sha256(b"".join(sorted(records))).digest())
    return digest.hexdigest()


def describe(name: str, arrays: Arrays) -> Dataset:
    """Return `arrays` as a `Dataset`, with statistics and digests.

    Raises:
      UserError: the images cannot be normalized, because a color channel has the same value in all
        training images.
    """
    mean, std = channel_statistics(arrays.train.images)
    if constant := [c for c, s in zip(("red", "green", "blue"), std, strict=True) if not s]:
        raise UserError(
            f"the training images of {name} cannot be normalized, because all pixels have the "
            f"same {' and '.join(constant)} value: check the images"
        )
    splits = arrays.train, arrays.test
    return Dataset(
        name=name,
        mean=mean,
        std=std,
        fingerprint=fingerprint(*splits),
        content=content_digest(*splits),
        **arrays._asdict(),
    )
