"""Read a data set from a folder of the user's own images.

The images are `train/CLASS/*` and `test/CLASS/*`, or only `CLASS/*`. They are sorted by the SHA-256
of the decoded image. This order looks random and does not depend on file names or dates.

Without a `test` folder, a fifth of each class becomes the test images. If an image occurs several
times, all copies are in the same split.
"""

import difflib
import hashlib
import itertools
import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cifar_jax.data.cache import Source, path_digest
from cifar_jax.data.dataset import IMAGE_SHAPE, Arrays, Split
from cifar_jax.data.images import SUFFIXES, decode, ignore_warnings, walk
from cifar_jax.data.progress import notice, progress
from cifar_jax.errors import UserError, counted

# Increase this number when a change to this module decodes the same files to different arrays.
# Cache entries with another number are ignored.
_VERSION = 2
_TEST_FRACTION = 0.2
# Largest number of unreadable files to name on standard error.
_MAX_MESSAGES = 10
# HEIC files cannot be read. They are listed here, so that they are reported instead of skipped.
_SUFFIXES = {*SUFFIXES, ".heic", ".heif"}


class File(NamedTuple):
    """An image file: path, label, size in bytes, and modification time in nanoseconds."""

    path: str
    label: int
    size: int
    modified: int


class Listing(NamedTuple):
    """The classes and image files of a folder.

    `test` is None if the folder has no subfolder `test`. `skipped` is the number of files without
    an image suffix.
    """

    classes: tuple[str, ...]
    train: list[File]
    test: list[File] | None
    skipped: int


def source(path: Path) -> Source:
    """Return a folder of images as a `cache.Source`.

    The signature of the source changes if an image is added, removed, renamed or modified.

    Raises:
      UserError: the folder is missing, the layout is wrong, there are fewer than two classes, or a
        class has no images.
    """
    path = Path(os.path.expanduser(path)).absolute()  # noqa: PTH111 - accepts an unknown ~user
    listing = find(path)
    start = len(str(path))
    files = [
        [(file.path[start:], *file[1:]) for file in split]
        for split in (listing.train, listing.test or [])
    ]
    content = json.dumps([_VERSION, listing.classes, listing.test is None, files])
    return Source(
        name=f"folder:{path.resolve().name}",
        entry=f"folder-{path_digest(path)}",
        signature=hashlib.sha256(content.encode()).hexdigest(),
        decode=lambda: read(path, listing),
    )


def find(path: Path) -> Listing:
    """List the classes and images of a folder, without reading the images."""
    layouts = f"{path}/train/CLASS/* and {path}/test/CLASS/*, or {path}/CLASS/*"
    if not path.is_dir():
        problem = "is not a folder" if path.exists() else "does not exist"
        raise UserError(f"{path} {problem}: data.dataset=folder:PATH needs a folder of images")
    names = {folder.name for folder in _folders(path)}
    if "test" in names and "train" not in names:
        raise UserError(
            f"{path} has a folder `test` but no folder `train`. Arrange the images as {layouts}."
        )
    root = path / "train" if "train" in names else path
    classes = tuple(folder.name for folder in _folders(root))
    if len(classes) < 2:
        raise UserError(
            f"{root} has {counted(len(classes), 'class folder')}, but at least 2 are needed. "
            f"Arrange the images as {layouts}."
        )
    if unprintable := [name for name in classes if not name.isprintable()]:
        raise UserError(
            f"the folder {unprintable[0]!a} in {root} has characters in its name that cannot be "
            "printed: rename it"
        )
    train, skipped = _list_images(root, classes)
    labels = {file.label for file in train}
    if empty := [name for label, name in enumerate(classes) if label not in labels]:
        raise UserError(f"{root / empty[0]} has no images: add some, or remove the folder")
    if root == path or "test" not in names:
        return Listing(classes, train, None, skipped)
    for folder in _folders(path / "test"):
        if folder.name not in classes:
            near = difflib.get_close_matches(folder.name, classes, n=1)
            hint = f"; did you mean {near[0]}?" if near else "."
            raise UserError(
                f"{folder} has no class of the same name in {root}{hint} The classes there are "
                f"{', '.join(classes)}."
            )
    test, skipped_test = _list_images(path / "test", classes)
    if not test:
        raise UserError(f"{path / 'test'} has no images: add some, or remove the folder")
    return Listing(classes, train, test, skipped + skipped_test)


def read(path: Path, listing: Listing) -> Arrays:
    """Read the images of a folder.

    Raises:
      UserError: images cannot be read, or are too few to hold out a test set. The first unreadable
        images are named on standard error.
    """
    if listing.skipped:
        notice(
            f"{path}: skipped {counted(listing.skipped, 'file')} without an image suffix such as "
            ".png"
        )
    errors: list[str] = []
    total = len(listing.train) + len(listing.test or [])
    with progress(f"Reading {path} (once)", total) as advance:
        train = _read_split(listing.train, errors, advance)
        test = _read_split(listing.test or [], errors, advance)
    if errors:
        for error in errors[:_MAX_MESSAGES]:
            notice(error)
        if len(errors) > _MAX_MESSAGES:
            notice(f"… and {len(errors) - _MAX_MESSAGES:,} more")
        raise UserError(
            f"{len(errors):,} of {counted(total, 'image')} in {path} cannot be read (see above): "
            "repair or remove the files"
        )
    if listing.test is None:
        train, test = _hold_out(train, len(listing.classes))
        if not len(test.labels):
            raise UserError(
                f"{path} has too few images to hold out some for the test. Add images, or arrange "
                f"them as {path}/train/CLASS/* and {path}/test/CLASS/*."
            )
    return Arrays(listing.classes, train, test)


def _folders(path: Path) -> list[Path]:
    """Return the visible subfolders of a folder, sorted by name."""
    visible = (p for p in path.iterdir() if not p.name.startswith(".") and p.name != "__MACOSX")
    return sorted((p for p in visible if p.is_dir()), key=lambda p: p.name)


def _list_images(root: Path, classes: tuple[str, ...]) -> tuple[list[File], int]:
    """Return the image files of each class, and the number of other files."""
    files, skipped = [], 0
    for label, name in enumerate(classes):
        if not (root / name).is_dir():
            continue  # This class has no test images.
        for entry in walk(root / name):
            if os.path.splitext(entry.name)[1].lower() in _SUFFIXES:  # noqa: PTH122 - 10 x faster
                stat = entry.stat()
                files.append(File(entry.path, label, stat.st_size, stat.st_mtime_ns))
            else:
                skipped += 1
    return files, skipped


def _read_split(files: list[File], errors: list[str], advance: Callable[[int], None]) -> Split:
    """Read images and sort them by SHA-256. Append one message per unreadable file to `errors`."""

    def attempt(file: File) -> np.ndarray | UserError:
        try:
            return decode(Path(file.path))
        except UserError as error:
            return error

    images = np.zeros((len(files), *IMAGE_SHAPE), np.uint8)
    labels = np.array([file.label for file in files], np.int32)
    pool = ThreadPoolExecutor()
    try:
        with ignore_warnings():
            for i, image in enumerate(pool.map(attempt, files)):
                if isinstance(image, UserError):
                    errors.append(str(image))
                else:
                    images[i] = image
                advance(1)
    finally:
        pool.shutdown(cancel_futures=True)  # After Ctrl-C, do not wait for the remaining images.
    digests = [hashlib.sha256(image.tobytes()).digest() for image in images]
    order = sorted(range(len(files)), key=lambda i: (digests[i], labels[i]))
    return Split(images[order], labels[order])


def _hold_out(split: Split, classes: int) -> tuple[Split, Split]:
    """Divide images that are sorted by SHA-256 into training and test images.

    The first fifth of each class becomes test images. A class with two or more images has at least
    one test image. If copies of an image would be in both splits, all become training images.
    """
    is_test = np.zeros(len(split.labels), bool)
    for label in range(classes):
        members = np.flatnonzero(split.labels == label)
        count = max(round(_TEST_FRACTION * len(members)), 1 if len(members) > 1 else 0)
        is_test[members[:count]] = True
    # Copies of an image are neighbors, even if they have different classes.
    is_copy = [(a == b).all() for a, b in itertools.pairwise(split.images)]
    group = np.concatenate([[0], np.cumsum(~np.array(is_copy, bool))])
    in_train = np.zeros(len(is_test), bool)
    in_train[group[~is_test]] = True
    is_test &= ~in_train[group]
    return (
        Split(split.images[~is_test], split.labels[~is_test]),
        Split(split.images[is_test], split.labels[is_test]),
    )
