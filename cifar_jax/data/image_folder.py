"""Read a data set from a folder of the user's own images.

The module `layout` finds the images of each split and class. The images of a split are sorted by
the SHA-256 of their pixels at a size of 32×32. This order looks random. It does not depend on file
names, dates or the image size of the run.

If there is no folder of test images, a fifth of the images of each class becomes the test set. If
one copy of an image is a training image, no copy is a test image.
"""

import hashlib
import itertools
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from cifar_jax.data.cache import Source, path_digest
from cifar_jax.data.dataset import Arrays, Dataset, Labeled, Split
from cifar_jax.data.images import (
    DEFAULT_TARGET,
    SixteenBitError,
    Target,
    decode,
    decode_checked,
    ignore_warnings,
)
from cifar_jax.data.layout import Listing, find, find_labeled
from cifar_jax.data.progress import notice, progress
from cifar_jax.errors import UserError, counted
from cifar_jax.files import expand_home, write_bytes
from cifar_jax.runtime import cache_dir

# Increase this number if a change to this module changes the decoded arrays or refuses more files.
# Cache entries with another number are ignored.
_VERSION = 4
_TEST_FRACTION = 0.2
# Largest number of unreadable files that are named on standard error.
_MAX_MESSAGES = 10
# 16-bit images are refused if they use less than this fraction of the gray values.
_MIN_RANGE = 1 / 16


T = TypeVar("T")


class _Image(NamedTuple):
    """A decoded image of a folder."""

    pixels: np.ndarray
    """Pixels, uint8 `[size, size, 3]`."""
    key: bytes
    """SHA-256 of the pixels at a size of 32×32, which determines the order and the split. The test
    images are therefore the same for all image sizes."""


_Labeled = list[tuple[_Image, int]]
"""List of pairs of an image and the index of its class."""


def source(path: Path, *, skip_bad_images: bool = False, target: Target = DEFAULT_TARGET) -> Source:
    """Return a folder of images as a `cache.Source`.

    The signature of the source changes if an image is added, removed, renamed or modified.

    Args:
      path: the folder.
      skip_bad_images: whether to leave out unreadable images. If False, they raise an error.
      target: size of the returned images, and the way to make them square.

    Raises:
      UserError: the folder is missing, the layout is wrong, there are fewer than two classes, or a
        class has no images.
    """
    path = expand_home(path).absolute()
    listing = find(path)
    start = len(str(path))
    files = [
        split and [(file.path[start:], *file[1:]) for file in split]
        for split in (listing.train, listing.validation, listing.test)
    ]
    content = [_VERSION, listing.classes, files, skip_bad_images]
    if target != DEFAULT_TARGET:
        content.append(target)
    return Source(
        name=f"folder:{path.resolve().name}",
        entry=f"folder-{path_digest(path)}{target.suffix}",
        signature=hashlib.sha256(json.dumps(content).encode()).hexdigest(),
        decode=lambda: read(path, listing, skip_bad_images, target),
        notes=listing.notes,
    )


def labeled(path: Path, target: Target = DEFAULT_TARGET, white: int | None = None) -> Labeled:
    """Read all labeled images of a folder for evaluation. The result is not cached.

    Args:
      path: the folder.
      target: size of the returned images, and the way to make them square.
      white: the 16-bit value that becomes 255; see `cifar_jax.data.images.read_image`.

    Raises:
      UserError: the layout is wrong, or images cannot be read.
    """
    path = expand_home(path)
    listing = find_labeled(path)
    _report_skipped(path, listing)
    paths = [Path(file.path) for file in listing.train]
    with progress(f"Reading {path}", len(paths)) as advance:
        images = _read_all(
            paths, lambda file: decode_checked(file, white=white, target=target), advance
        )
    pixels = [image for image in images if not isinstance(image, UserError)]
    if errors := [str(image) for image in images if isinstance(image, UserError)]:
        place = _report_unreadable(path, errors)
        raise UserError(
            f"{len(errors):,} of {counted(len(paths), 'image')} in {path} cannot be read "
            f"({place}): repair or remove the files"
        )
    labels = np.array([file.label for file in listing.train], np.int32)
    return Labeled(
        f"folder:{path}", np.stack(pixels), labels, listing.classes, tuple(listing.notes)
    )


def read(
    path: Path, listing: Listing, skip_bad_images: bool, target: Target = DEFAULT_TARGET
) -> Arrays:
    """Read the images of a folder.

    Raises:
      UserError: images cannot be read, there are too few images to hold out a test set, or the
        16-bit images use too few gray values. Up to ten unreadable images are named on standard
        error.
    """
    _report_skipped(path, listing)
    splits = (listing.train, listing.validation or [], listing.test or [])
    files = [file for split in splits for file in split]
    paths = [Path(file.path) for file in files]
    with progress(f"Reading {path} (once)", len(files)) as advance:
        images = _read_all(paths, lambda file: _decode(file, None, target), advance)
    white = None
    ranges = {i: image for i, image in enumerate(images) if isinstance(image, SixteenBitError)}
    if ranges:
        white = _find_white(path, list(ranges.values()))
        start = 0
        for name, split in zip(("training", "validation", "test"), splits, strict=True):
            end = start + len(split)
            _check_range(path, name, [r for i, r in ranges.items() if start <= i < end], white)
            start = end
        scaled = _read_all(
            [paths[i] for i in ranges],
            lambda file: _decode(file, white, target),
            lambda count: None,
        )
        for i, image in zip(ranges, scaled, strict=True):
            images[i] = image
    errors = tuple(str(image) for image in images if isinstance(image, UserError))
    if errors:
        place = _report_unreadable(path, errors)
        if not skip_bad_images:
            raise UserError(
                f"{len(errors):,} of {counted(len(files), 'image')} in {path} cannot be read "
                f"({place}): repair or remove the files, or add --set data.skip_bad_images=true"
            )
    pairs = zip(images, files, strict=True)
    train, validation, test = (
        _sort(
            [
                (image, file.label)
                for image, file in itertools.islice(pairs, len(split))
                if isinstance(image, _Image)
            ]
        )
        for split in splits
    )
    trained = {label for _, label in train}
    for label, name in enumerate(listing.classes):
        if label not in trained:
            raise UserError(f"no training image of the class {name} in {path} can be read")
    for name, files, split in (
        ("validation", listing.validation, validation),
        ("test", listing.test, test),
    ):
        if files and not split:
            raise UserError(f"no {name} image in {path} can be read")
    if listing.test is None:
        train, test = _hold_out(train, len(listing.classes))
        if not test:
            raise UserError(
                f"{path} has too few different images to hold out some for the test. Add images, "
                f"or arrange them as {path}/train/CLASS/* and {path}/test/CLASS/*."
            )
    reserved = None if listing.validation is None else len(validation)
    train_split, test_split = (_stack(images, target) for images in (train + validation, test))
    return Arrays(listing.classes, train_split, test_split, reserved, white, errors)


def remarks(dataset: Dataset) -> list[str]:
    """Return a log line if test images are copies of other images."""
    train, test = (
        [hashlib.sha256(image.tobytes()).digest() for image in split.images]
        for split in (dataset.train, dataset.test)
    )
    known = set(train)
    copies = sum(digest in known for digest in test)
    if not copies:
        return []
    total = counted(len(dataset.test.labels), "test image")
    return [f"{copies:,} of {total} are copies of training or validation images"]


def _report_skipped(path: Path, listing: Listing) -> None:
    """Print the number of files that are not images, if there are any, on standard error."""
    if listing.skipped:
        notice(
            f"{path}: skipped {counted(listing.skipped, 'file')} without an image suffix such as "
            ".png"
        )


def _decode(file: Path, white: int | None, target: Target) -> _Image:
    """Read an image file of a training set. Raise the exceptions of `images.decode`."""
    pixels = small = decode(file, white=white, target=target)
    if target != DEFAULT_TARGET:
        small = decode(file, white=white)
    return _Image(pixels, hashlib.sha256(small.tobytes()).digest())


def _read_all(
    paths: Sequence[Path], read: Callable[[Path], T], advance: Callable[[int], None]
) -> list[T | UserError]:
    """Apply `read` to image files in parallel. For an unreadable file, return the error."""

    def attempt(path: Path) -> T | UserError:
        try:
            return read(path)
        except UserError as error:
            return error

    images = []
    pool = ThreadPoolExecutor()
    try:
        with ignore_warnings():
            for image in pool.map(attempt, paths):
                images.append(image)
                advance(1)
    finally:
        pool.shutdown(cancel_futures=True)  # Do not decode the remaining images after Ctrl-C.
    return images


def _find_white(path: Path, ranges: Sequence[SixteenBitError]) -> int:
    """Return the 16-bit value that becomes white: 255, 1023, 4095, 16383 or 65535.

    The result is the smallest of these five values that no image exceeds.

    Raises:
      UserError: most images use only a small part of the gray values.
    """
    top = max(image.top for image in ranges)
    white = next(2**bits - 1 for bits in (8, 10, 12, 14, 16) if top < 2**bits)
    low = np.percentile([image.low for image in ranges], 10)
    high = np.percentile([image.high for image in ranges], 90)
    if white > 255 and 0 < high - low < _MIN_RANGE * white:
        raise UserError(
            f"the 16-bit images in {path} have values up to {top}, but most are between {low:.0f} "
            f"and {high:.0f}, and this range is too small: save them with 8 bits per channel"
        )
    return white


def _check_range(path: Path, name: str, ranges: Sequence[SixteenBitError], white: int) -> None:
    """Raise UserError if most 16-bit images of a split are almost black.

    If only some are almost black, print a notice.

    Args:
      path: the folder.
      name: name of the split.
      ranges: the 16-bit images of the split.
      white: the 16-bit value of white.
    """
    dark = [image for image in ranges if 0 < image.top < _MIN_RANGE * white]
    if not dark:
        return
    text = (
        f"{len(dark):,} of {counted(len(ranges), '16-bit image')} for {name} in {path} have no "
        f"value above {max(image.top for image in dark)}, but white is {white} in this data set"
    )
    if 2 * len(dark) > len(ranges):
        raise UserError(f"{text}: save all images with the same range, or with 8 bits per channel")
    notice(f"{text}, so they are almost black; the first is {dark[0].name}")


def _report_unreadable(path: Path, errors: Sequence[str]) -> str:
    """Name unreadable images on standard error. Return text that says where all are listed."""
    for error in errors[:_MAX_MESSAGES]:
        notice(" ".join(error.split()))
    if len(errors) > _MAX_MESSAGES:
        notice(f"… and {len(errors) - _MAX_MESSAGES:,} more")
    file = cache_dir() / f"unreadable-{path.name}-{path_digest(path)}.txt"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(
            file,
            "".join(f"{' '.join(error.split())}\n" for error in errors).encode(errors="replace"),
        )
    except OSError:
        return "see above"
    return f"all are listed in {file}"


def _sort(images: _Labeled) -> _Labeled:
    """Return the images sorted by key, which is the SHA-256 of their pixels."""
    return sorted(images, key=lambda pair: (pair[0].key, pair[1]))


def _stack(images: _Labeled, target: Target) -> Split:
    """Return the images and labels as arrays."""
    pixels = np.zeros((len(images), target.size, target.size, 3), np.uint8)
    for i, (image, _) in enumerate(images):
        pixels[i] = image.pixels
    return Split(pixels, np.array([label for _, label in images], np.int32))


def _hold_out(images: _Labeled, classes: int) -> tuple[_Labeled, _Labeled]:
    """Divide images that are sorted by their keys into training and test images.

    The first fifth of each class becomes test images. A class with two or more images has at least
    one test image. If one copy of an image is a training image, no copy is a test image.
    """
    labels = np.array([label for _, label in images], np.int32)
    is_test = np.zeros(len(images), bool)
    for label in range(classes):
        members = np.flatnonzero(labels == label)
        count = max(round(_TEST_FRACTION * len(members)), 1 if len(members) > 1 else 0)
        is_test[members[:count]] = True
    in_train = {
        image.key for (image, _), held_out in zip(images, is_test, strict=True) if not held_out
    }
    train = [pair for pair in images if pair[0].key in in_train]
    test = [pair for pair in images if pair[0].key not in in_train]
    return train, test
