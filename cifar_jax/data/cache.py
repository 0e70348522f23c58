"""Decoded arrays kept on disk, so that every start after the first loads in well under a second.

An entry is a folder with four ``.npy`` files and ``meta.json``. It is good for one signature of its
source, so a changed source is noticed, and `meta.json` holds checksums of the files and of itself,
so a damaged one is too; in either case the entry is built anew. Entries appear whole, by rename,
under a lock.
"""

import contextlib
import errno
import json
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cifar_jax.data.dataset import Dataset, Decoded, Split, summarise
from cifar_jax.data.progress import notice, reason
from cifar_jax.runtime import cache_dir

# Part of every entry: raise it when the layout of an entry or the meaning of its arrays changes.
CACHE_VERSION = 2
_ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")
_FILES = {"meta.json", *(f"{name}.npy" for name in _ARRAYS)}


class Source(NamedTuple):
    """Where a data set comes from.

    ``entry`` names its place in the cache, ``signature`` changes whenever ``decode`` would give
    something else, and ``decode`` reads the arrays, however long that takes.
    """

    name: str
    entry: str
    signature: str
    decode: Callable[[], Decoded]


def load(source: Source) -> Dataset:
    """The source's data set: from the cache where it holds, else decoded and cached.

    Arrays from the cache are memory-mapped and read-only. Where the cache cannot be written, the
    data set is decoded all the same, with a notice on standard error.
    """
    entry = cache_dir() / source.entry
    with locked(source.entry):
        if (dataset := _read(entry, source)) is not None:
            return dataset
        dataset = summarise(source.name, source.decode())
        try:
            _write(entry, source, dataset)
        except OSError as error:
            what = error.strerror or reason(error)
            notice(f"{source.name} could not be cached in {entry.parent}: {what}")
        return dataset


@contextlib.contextmanager
def locked(name: str) -> Iterator[None]:
    """Hold the lock of this name in the cache folder, waiting for it if need be.

    Where the folder cannot be written there is no lock, and nothing that would need one.
    """
    from filelock import FileLock

    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError, NotImplementedError):
            cache_dir().mkdir(parents=True, exist_ok=True)
            stack.enter_context(FileLock(cache_dir() / f"{name}.lock"))
        yield


def is_fresh(source: Source) -> bool:
    """Whether the cache has an entry of this very source. Reads no arrays."""
    meta = _read_meta(cache_dir() / source.entry)
    return meta is not None and _fits(meta, source)


def _read_meta(entry: Path) -> dict[str, Any] | None:
    try:
        meta = json.loads((entry / "meta.json").read_text("utf-8"))
        checksum = meta.pop("checksum")
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None
    return meta if checksum == _checksum(meta) else None


def _checksum(meta: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(meta, sort_keys=True).encode())


def _fits(meta: dict[str, Any], source: Source) -> bool:
    return (meta.get("version"), meta.get("signature")) == (CACHE_VERSION, source.signature)


def _read(entry: Path, source: Source) -> Dataset | None:
    """The entry's data set, or None if it is missing, of another source, or damaged."""
    meta = _read_meta(entry)
    if meta is None or not _fits(meta, source):
        return None
    try:
        arrays = {}
        for name in _ARRAYS:
            file = entry / f"{name}.npy"
            # The file's header too: it says what the bytes after it mean.
            if zlib.crc32(np.memmap(file, mode="r").data) != meta["crc32"][name]:
                return None
            arrays[name] = np.load(file, mmap_mode="r", allow_pickle=False)
        return Dataset(
            name=source.name,
            classes=tuple(meta["classes"]),
            train=Split(np.asarray(arrays["train_images"]), np.asarray(arrays["train_labels"])),
            test=Split(np.asarray(arrays["test_images"]), np.asarray(arrays["test_labels"])),
            mean=tuple(meta["mean"]),
            std=tuple(meta["std"]),
            fingerprint=meta["fingerprint"],
            content=meta["content"],
        )
    except (OSError, EOFError, ValueError, KeyError, TypeError):
        return None


def _write(entry: Path, source: Source, dataset: Dataset) -> None:
    arrays = dict(zip(_ARRAYS, (*dataset.train, *dataset.test), strict=True))
    meta = {
        "version": CACHE_VERSION,
        "signature": source.signature,
        "classes": dataset.classes,
        "mean": dataset.mean,
        "std": dataset.std,
        "fingerprint": dataset.fingerprint,
        "content": dataset.content,
    }
    entry.parent.mkdir(parents=True, exist_ok=True)
    # The lock is held, so whatever of this name is left is from a run that was killed.
    for leftover in entry.parent.glob(f".{entry.name}-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    with tempfile.TemporaryDirectory(
        dir=entry.parent, prefix=f".{entry.name}-", ignore_cleanup_errors=True
    ) as scratch:
        fresh = Path(scratch) / "fresh"
        fresh.mkdir()
        meta["crc32"] = {
            name: _save(fresh / f"{name}.npy", array) for name, array in arrays.items()
        }
        meta["checksum"] = _checksum(meta)
        (fresh / "meta.json").write_text(json.dumps(meta, indent=1) + "\n", "utf-8")
        if entry.exists():
            if not {path.name for path in entry.iterdir()} <= _FILES:
                what = f"{entry.name} there has files that are not its own"
                raise FileExistsError(errno.EEXIST, what)
            entry.rename(Path(scratch) / "stale")
        fresh.rename(entry)


def _save(path: Path, array: np.ndarray) -> int:
    """Write the array and return the file's CRC-32.

    NumPy writes through it, and not by its own `tofile`, whose errors do not say that a disk is
    full.
    """

    class Summed:
        crc32 = 0

        def write(self, content: bytes) -> int:
            self.crc32 = zlib.crc32(content, self.crc32)
            return file.write(content)

    with path.open("wb") as file:
        summed = Summed()
        np.save(summed, array, allow_pickle=False)  # pyright: ignore[reportArgumentType]
    return summed.crc32
