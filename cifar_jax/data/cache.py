"""Store decoded data sets on disk, so that images are decoded only once.

Each data set has one cache entry, an uncompressed `.npz` file. The entry holds the images and
labels as arrays, and the metadata as a JSON string. Checksums inside the file detect damage. The
metadata contain a signature of the source files, which detects changes. A damaged or outdated entry
is rebuilt.
"""

import contextlib
import hashlib
import json
import os
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cifar_jax.data.dataset import Arrays, Dataset, Split, describe
from cifar_jax.data.progress import notice
from cifar_jax.files import write_file
from cifar_jax.runtime import cache_dir

# Increase this number if the layout of cache entries or the meaning of their arrays changes. The
# cache entries of other versions of the package, with another number, are then ignored.
_VERSION = 3
_ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")
_SILENT_SECONDS = 10  # Seconds to wait for another process before a message is printed.
_DAMAGE = (OSError, EOFError, ValueError, LookupError, TypeError, zipfile.BadZipFile)


class Source(NamedTuple):
    """A data set that is not loaded yet, with the function that decodes it.

    Attributes:
      name: name of the data set.
      entry: name of the cache entry, without `.npz`.
      signature: a string that changes whenever the result of `decode` changes.
      decode: function that reads and decodes the images. It may take minutes.
      notes: lines for the log about the images.
    """

    name: str
    entry: str
    signature: str
    decode: Callable[[], Arrays]
    notes: tuple[str, ...] = ()


def load(source: Source) -> Dataset:
    """Load a data set from the cache, or decode it and add it to the cache.

    If the cache cannot be written, a warning is printed on standard error.
    """
    path = _path(source)
    with lock(source.entry):
        if (dataset := _read(path, source)) is not None:
            return dataset
        dataset = describe(source.name, source.decode())._replace(notes=source.notes)
        try:
            _write(path, source, dataset)
        except OSError as error:
            notice(
                f"the images of {source.name} cannot be stored in {path}, so the next command "
                f"decodes them again: {error.strerror or error}"
            )
        return dataset


def is_fresh(source: Source) -> bool:
    """Return whether the cache has an up-to-date entry for a data set. No images are read."""
    try:
        with np.load(_path(source), allow_pickle=False) as entry:
            return _metadata(entry, source) is not None
    except _DAMAGE:
        return False


@contextlib.contextmanager
def lock(name: str) -> Iterator[None]:
    """Hold a lock in the cache folder, so that only one process downloads and decodes a data set.

    If the cache folder is read-only, or if its file system supports no locks, nothing is locked.
    """
    from filelock import FileLock, SoftFileLock, Timeout

    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError, NotImplementedError), warnings.catch_warnings():
            # Hide filelock's warning about file systems without locks.
            warnings.simplefilter("ignore")
            cache_dir().mkdir(parents=True, exist_ok=True)
            file = FileLock(path := cache_dir() / f"{name}.lock", timeout=_SILENT_SECONDS)
            try:
                stack.enter_context(file)
            except Timeout:
                # On a file system without locks, the existence of a file is the lock. Do not wait
                # for its deletion, because a killed process does not delete the file.
                if not isinstance(file, SoftFileLock):
                    notice(f"waiting for another process that reads {name} and locks {path}")
                    stack.enter_context(file.acquire(timeout=-1))
        yield


def path_digest(path: Path) -> str:
    """Return 12 hexadecimal digits that identify the path of a data set.

    The digits distinguish the cache entries of data sets with the same name in different places.
    """
    return hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:12]


def _path(source: Source) -> Path:
    return cache_dir() / f"{source.entry}.npz"


def _metadata(entry: Any, source: Source) -> dict[str, Any] | None:
    """Return the decoded JSON of a cache entry, or None if the entry is outdated."""
    metadata = json.loads(entry["metadata"].item())
    matches = (metadata["version"], metadata["signature"]) == (_VERSION, source.signature)
    return metadata if matches else None


def _read(path: Path, source: Source) -> Dataset | None:
    """Return a cached data set, or None if the entry is missing, outdated or damaged."""
    try:
        with np.load(path, allow_pickle=False) as entry:
            if (metadata := _metadata(entry, source)) is None:
                return None
            train_images, train_labels, test_images, test_labels = (entry[n] for n in _ARRAYS)
            return Dataset(
                name=source.name,
                classes=tuple(metadata["classes"]),
                train=Split(train_images, train_labels),
                test=Split(test_images, test_labels),
                mean=tuple(metadata["mean"]),
                std=tuple(metadata["std"]),
                fingerprint=metadata["fingerprint"],
                content=metadata["content"],
                validation_images=metadata.get("validation_images"),
                white=metadata.get("white"),
                skipped=tuple(metadata.get("skipped", ())),
                notes=source.notes,
            )
    except _DAMAGE:
        return None


def _write(path: Path, source: Source, dataset: Dataset) -> None:
    metadata = {
        "version": _VERSION,
        "signature": source.signature,
        "classes": dataset.classes,
        "mean": dataset.mean,
        "std": dataset.std,
        "fingerprint": dataset.fingerprint,
        "content": dataset.content,
        "validation_images": dataset.validation_images,
        "white": dataset.white,
        "skipped": dataset.skipped,
    }
    arrays = dict(zip(_ARRAYS, (*dataset.train, *dataset.test), strict=True))
    text = np.array(json.dumps(metadata))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, lambda file: np.savez(file, metadata=text, **arrays))
