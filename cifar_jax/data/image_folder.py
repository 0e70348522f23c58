"""A person's own images as a data set: ``train/CLASS/*`` and ``test/CLASS/*``, or ``CLASS/*``.

Each file goes through `read_image`. Where there is no ``test`` folder a fifth of every class is
held out. Which images these are, and the order of the rest, follows from the images' SHA-256 alone:
it is a shuffle that names and dates do not change, and copies of an image stay on one side.
"""

import difflib
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cifar_jax.data.cache import Source
from cifar_jax.data.dataset import IMAGE_SHAPE, Decoded, Split
from cifar_jax.data.images import SUFFIXES, decode, quiet
from cifar_jax.data.progress import notice, progress
from cifar_jax.errors import UserError

# Part of every signature: raise it when the same files come to mean other arrays.
_VERSION = 2
_TEST_SHARE = 0.2
_SHOWN = 10  # unreadable files that are named
# Those are images in the user's eyes, and so are named and not passed over.
_SUFFIXES = {*SUFFIXES, ".heic", ".heif"}


class File(NamedTuple):
    """An image file; `changed` is its time in nanoseconds, `size` its bytes."""

    path: str
    label: int
    size: int
    changed: int


class Files(NamedTuple):
    """What lies in a folder, each list sorted; ``test`` is None if it is to be held out."""

    classes: tuple[str, ...]
    train: list[File]
    test: list[File] | None
    passed_over: int


def source(path: Path) -> Source:
    """The folder as a source; its signature covers the images' names, sizes and times.

    Raises UserError for a folder that is not there or not of this form, with fewer than two
    classes, and for a class without images.
    """
    try:
        path = path.expanduser().absolute()
        files = find(path)
        place = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:12]
    except OSError as error:
        raise UserError(f"{error.filename or path} cannot be read: {error.strerror}") from error
    except RuntimeError as error:
        raise UserError(f"{path} does not exist: there is no such user") from error
    start = len(str(path))
    listed = [
        [(file.path[start:], *file[1:]) for file in split]
        for split in (files.train, files.test or [])
    ]
    content = json.dumps([_VERSION, files.classes, files.test is None, listed])
    return Source(
        name=f"folder:{path.resolve().name}",
        entry=f"folder-{place}",
        signature=hashlib.sha256(content.encode()).hexdigest(),
        decode=lambda: read(path, files),
    )


def find(path: Path) -> Files:
    """The folder's classes and images, by their names alone. Raises UserError and OSError."""
    if not path.is_dir():
        what = "is not a folder" if path.exists() else "does not exist"
        raise UserError(f"{path} {what}: data.dataset=folder:PATH takes a folder of images")
    folders = {p.name for p in _folders(path)}
    if "test" in folders and "train" not in folders:
        raise UserError(f"{path} has a folder test and none called train: give {_forms(path)}")
    root = path / "train" if "train" in folders else path
    classes = tuple(p.name for p in _folders(root))
    if len(classes) < 2:
        raise UserError(
            f"{root} has {len(classes)} folders, and a class each takes two: give {_forms(path)}"
        )
    for name in classes:
        try:
            name.encode()
        except UnicodeEncodeError as error:
            raise UserError(f"{root / name} is not named in UTF-8: rename it") from error
    train, passed_over = _images(root, classes)
    labels = {file.label for file in train}
    if missing := [name for label, name in enumerate(classes) if label not in labels]:
        raise UserError(f"{root / missing[0]} holds no images: fill it, or take it away")
    if root == path or "test" not in folders:
        return Files(classes, train, None, passed_over)
    for folder in _folders(path / "test"):
        if folder.name not in classes:
            near = difflib.get_close_matches(folder.name, classes, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise UserError(f"{folder} is no class of {root}: {hint}they are {', '.join(classes)}")
    test, passed_over_too = _images(path / "test", classes)
    if not test:
        raise UserError(f"{path / 'test'} holds no images: fill it, or take it away")
    return Files(classes, train, test, passed_over + passed_over_too)


def read(path: Path, files: Files) -> Decoded:
    """The images, shuffled as the module says.

    Raises UserError, having named them on standard error, if there are files that `read_image`
    refuses.
    """
    if files.passed_over:
        notice(f"{path}: {files.passed_over:,} files were passed over, which are not called images")
    errors: list[str] = []
    total = len(files.train) + len(files.test or [])
    with progress(f"Reading {path} (once)", total) as advance:
        train = _read(files.train, errors, advance)
        test = _read(files.test or [], errors, advance)
    if errors:
        for error in errors[:_SHOWN]:
            notice(error)
        if len(errors) > _SHOWN:
            notice(f"… and {len(errors) - _SHOWN:,} more")
        raise UserError(
            f"{len(errors):,} of the {total:,} images in {path} cannot be used: "
            "mend them, or take them away"
        )
    if files.test is None:
        train, test = _hold_out(train, len(files.classes))
        if not len(test.labels):
            raise UserError(
                f"{path} has too few images to hold out any for the test: add some, or give "
                f"{path}/train/CLASS/* and {path}/test/CLASS/*"
            )
    return Decoded(files.classes, train, test)


def _folders(path: Path) -> list[Path]:
    """Those below, sorted by name, but for hidden ones and what macOS puts into archives."""
    below = (p for p in path.iterdir() if not p.name.startswith(".") and p.name != "__MACOSX")
    return sorted((p for p in below if p.is_dir()), key=lambda p: p.name)


def _images(root: Path, classes: tuple[str, ...]) -> tuple[list[File], int]:
    """Image files at any depth below each class, and the number of other files."""
    found, others = [], 0
    for label, name in enumerate(classes):
        for entry in _walk(root / name):
            if os.path.splitext(entry.name)[1].lower() in _SUFFIXES:  # noqa: PTH122 - ten times faster
                about = entry.stat()
                found.append(File(entry.path, label, about.st_size, about.st_mtime_ns))
            else:
                others += 1
    return found, others


def _walk(folder: Path) -> Iterator[os.DirEntry[str]]:
    """What is no folder, at any depth, always in the same order; follows no links to folders."""
    waiting = [str(folder)] if folder.is_dir() else []  # a class without test images has none
    while waiting:
        with os.scandir(waiting.pop()) as below:
            entries = sorted(below, key=lambda entry: entry.name)
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                waiting.append(entry.path)
            elif not entry.is_dir():
                yield entry


def _read(files: list[File], errors: list[str], advance: Callable[[int], None]) -> Split:
    """The split in the order of its images' digests; adds to ``errors``."""

    def attempt(file: File) -> np.ndarray | UserError:
        try:
            return decode(Path(file.path))
        except UserError as error:
            return error

    images = np.zeros((len(files), *IMAGE_SHAPE), np.uint8)
    labels = np.array([file.label for file in files], np.int32)
    pool = ThreadPoolExecutor()
    try:
        with quiet():
            for i, image in enumerate(pool.map(attempt, files)):
                if isinstance(image, UserError):
                    errors.append(str(image))
                else:
                    images[i] = image
                advance(1)
    finally:
        pool.shutdown(cancel_futures=True)  # an interrupt does not wait for all the rest
    order = sorted(range(len(files)), key=lambda i: (_digest(images[i]), labels[i]))
    return Split(images[order], labels[order])


def _digest(image: np.ndarray) -> bytes:
    return hashlib.sha256(image.tobytes()).digest()


def _hold_out(split: Split, classes: int) -> tuple[Split, Split]:
    """(train, test): the first fifth of each class in this order, of two images on at least one."""
    held = np.zeros(len(split.labels), bool)
    for label in range(classes):
        inside = np.flatnonzero(split.labels == label)
        count = max(round(_TEST_SHARE * len(inside)), 1 if len(inside) > 1 else 0)
        held[inside[:count]] = True
    # In this order copies of an image, of whichever class, follow each other. Where one stays
    # behind all do.
    copies = [(a == b).all() for a, b in itertools.pairwise(split.images)]
    group = np.concatenate([[0], np.cumsum(~np.array(copies, bool))])
    behind = np.zeros(len(held), bool)
    behind[group[~held]] = True
    held &= ~behind[group]
    return (
        Split(split.images[~held], split.labels[~held]),
        Split(split.images[held], split.labels[held]),
    )


def _forms(path: Path) -> str:
    return f"{path}/train/CLASS/* and {path}/test/CLASS/*, or {path}/CLASS/*"
