"""What a data set is once it is in memory, and how validation images are held out."""

import hashlib
from typing import NamedTuple

import numpy as np

from cifar_jax.errors import UserError

IMAGE_SHAPE = (32, 32, 3)


class Split(NamedTuple):
    """Part of a data set: ``images`` uint8 ``[N, 32, 32, 3]``, ``labels`` int32 ``[N]``."""

    images: np.ndarray
    labels: np.ndarray


class Dataset(NamedTuple):
    """A data set in memory.

    ``mean`` and ``std`` are per channel, in 0..1, over every training image (before any validation
    images are held out). ``fingerprint`` is that of `fingerprint`, which the order of images
    changes, and ``content`` that of `content_digest`, which it does not. ``official`` says that
    these are the published CIFAR-10's images, labels and splits, in whatever order and from
    whatever source. Arrays may be read-only.
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


class Decoded(NamedTuple):
    """What a source yields: a data set before its statistics are known."""

    classes: tuple[str, ...]
    train: Split
    test: Split


def split_validation(train: Split, validation: float) -> tuple[Split, Split]:
    """Hold out the last ``validation`` images of ``train``: (the rest, the held out).

    Below 1 it is a share of the images (0.1 of 50,000 is 5,000), from 1 on a number of images, and
    0 holds out none. Both parts are views. Raises UserError where either would be empty.
    """
    total = len(train.labels)
    count = round(validation * total) if 0 <= validation < 1 else validation
    if not 0 <= count < total or count != int(count) or (validation and not count):
        raise UserError(
            f"validation={validation:g} does not fit {total:,} training images: "
            "give a share below 1, such as --set data.validation=0.1, "
            f"or a whole number of images below {total}"
        )
    kept = total - int(count)
    return (
        Split(train.images[:kept], train.labels[:kept]),
        Split(train.images[kept:], train.labels[kept:]),
    )


def channel_statistics(
    images: np.ndarray,
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and (population) standard deviation of each channel of uint8 images, in 0..1.

    They come from histograms of whole numbers, so they are the same on every machine.
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
    """SHA-256 of the bytes of train images, train labels, test images, test labels, in that order.

    Images are C-ordered uint8 ``[N, 32, 32, 3]``, labels little-endian int32.
    """
    digest = hashlib.sha256()
    for split in (train, test):
        digest.update(np.ascontiguousarray(split.images, np.uint8).data)
        digest.update(np.ascontiguousarray(split.labels, "<i4").data)
    return digest.hexdigest()


def content_digest(train: Split, test: Split) -> str:
    """SHA-256 of what is in each split, whatever the order of its images.

    An image's digest is the SHA-256 of its bytes, uint8 ``[32, 32, 3]`` in C order, and its
    label's, little-endian int32; a split's is that of its images' digests, sorted; this one is
    that of the two splits'.
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


def summarise(name: str, decoded: Decoded) -> Dataset:
    """The `Dataset` of freshly decoded arrays: adds statistics and digests.

    Raises UserError where a channel is the same in all training images: nothing could be learned
    from it, and it could not be brought to a standard deviation of 1.
    """
    mean, std = channel_statistics(decoded.train.images)
    if constant := [c for c, s in zip(("red", "green", "blue"), std, strict=True) if not s]:
        raise UserError(
            f"the training images of {name} cannot be normalized: every pixel has the same "
            f"{' and '.join(constant)}"
        )
    order, content = fingerprint(*decoded[1:]), content_digest(*decoded[1:])
    return Dataset(name, *decoded, mean, std, order, content)
