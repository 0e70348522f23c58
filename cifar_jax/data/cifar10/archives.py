"""Reading the official CIFAR-10 archives, python or binary, packed or unpacked.

Both hold five training batches and a test batch of 10,000 images each, as rows of 1,024 red, green
and blue values; format: https://www.cs.toronto.edu/~kriz/cifar.html
"""

import hashlib
import tarfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cifar_jax.data.cifar10 import pickles
from cifar_jax.data.cifar10.facts import CLASSES, OFFICIAL_MD5
from cifar_jax.data.dataset import Decoded, Split
from cifar_jax.data.progress import reason
from cifar_jax.errors import UserError

IMAGES_PER_BATCH = 10_000
_TRAIN_BATCHES = tuple(f"data_batch_{i}" for i in range(1, 6))
_BATCHES = (*_TRAIN_BATCHES, "test_batch")
_PIXELS = 3 * 32 * 32
# The official batches are 31 MB each: what is far larger is none, and is not read into memory.
_MAX_BATCH_BYTES = 100_000_000
_MAX_ARCHIVE_BYTES = 1_000_000_000
_MAX_HEADER_BYTES = 100_000


class Archive(NamedTuple):
    """An archive's images; ``kind`` is "python" or "binary".

    ``is_official`` says that the MD5 of every batch is that of the official one.
    """

    kind: str
    is_official: bool
    images: Decoded


def batches_folder(path: Path) -> Path | None:
    """The folder of batches that ``path`` is, or holds; None if it has none."""
    for candidate in (path, path / "cifar-10-batches-py", path / "cifar-10-batches-bin"):
        if any((candidate / (name + end)).is_file() for name in _BATCHES for end in ("", ".bin")):
            return candidate
    return None


def read_folder(path: Path) -> Archive:
    """Read an unpacked archive. Raises UserError if it is damaged or lacks batches."""
    batches = {}
    for name in _BATCHES:
        for file in (path / name, path / f"{name}.bin"):
            if file.is_file():
                try:
                    if file.stat().st_size > _MAX_BATCH_BYTES:
                        raise UserError(f"{file} is too large for a CIFAR-10 batch")
                    batches[file.name] = file.read_bytes()
                except OSError as error:
                    raise UserError(f"{file} cannot be read: {error.strerror}") from error
    return _decode(path, batches)


def read_archive(path: Path) -> Archive:
    """Read a tar archive, compressed or not. Nothing is unpacked onto the disk.

    Raises UserError if the file is no archive, or one that is truncated or lacks batches.
    """
    batches, unpacked, is_archive = {}, 0, False
    try:
        with tarfile.open(path, tarinfo=_Member) as archive:
            is_archive = True
            for member in archive:
                unpacked += member.size
                if unpacked > _MAX_ARCHIVE_BYTES:
                    raise _TooLarge("all of it")
                name = Path(member.name).name
                if not member.isfile() or name.removesuffix(".bin") not in _BATCHES:
                    continue
                if member.size > _MAX_BATCH_BYTES:  # a sparse one, its header being small
                    raise _TooLarge(member.name)
                file = archive.extractfile(member)
                batches[name] = file.read() if file else b""
    except _TooLarge as error:
        raise UserError(f"{path}: {error} is too large for CIFAR-10") from error
    except PermissionError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    # A damaged archive can raise anything: tarfile's errors, EOFError, those of the compressions.
    except Exception as error:
        raise UserError(
            f"{path} is truncated or damaged: download it again"
            if is_archive
            else f"{path} is not a tar archive, or a damaged one: download it again"
        ) from error
    return _decode(path, batches)


class _TooLarge(Exception):
    pass


class _Member(tarfile.TarInfo):
    """A member whose size is checked before tarfile reads a long name or an extended header."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "_Member":
        member = super().frombuf(buf, encoding, errors)
        if member.size > (_MAX_BATCH_BYTES if member.isfile() else _MAX_HEADER_BYTES):
            raise _TooLarge(member.name)
        return member


def _decode(path: Path, batches: dict[str, bytes]) -> Archive:
    """Decode batches keyed by file name; ``path`` is for messages."""
    is_binary = any(name.endswith(".bin") for name in batches)
    suffix = ".bin" if is_binary else ""
    missing = [name + suffix for name in _BATCHES if name + suffix not in batches]
    if missing:
        raise UserError(f"{path} is not all of CIFAR-10: it lacks {', '.join(missing)}")
    parse = _binary_batch if is_binary else _python_batch
    splits = {}
    for name in _BATCHES:
        try:
            rows, labels = parse(batches[name + suffix])
        # A damaged pickle can raise anything.
        except Exception as error:
            raise UserError(f"{path}: {name}{suffix} is damaged ({reason(error)})") from error
        images = rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        splits[name] = Split(images, labels)
    train = Split(
        np.concatenate([splits[name].images for name in _TRAIN_BATCHES]),
        np.concatenate([splits[name].labels for name in _TRAIN_BATCHES]),
    )
    is_official = all(
        hashlib.md5(batches[name + suffix], usedforsecurity=False).hexdigest()
        == OFFICIAL_MD5[name + suffix]
        for name in _BATCHES
    )
    return Archive(
        "binary" if is_binary else "python",
        is_official,
        Decoded(CLASSES, train, splits["test_batch"]),
    )


def _binary_batch(content: bytes) -> tuple[np.ndarray, np.ndarray]:
    if len(content) != IMAGES_PER_BATCH * (1 + _PIXELS):
        wanted = IMAGES_PER_BATCH * (1 + _PIXELS)
        raise ValueError(f"{len(content):,} bytes instead of {wanted:,}")
    records = np.frombuffer(content, np.uint8).reshape(IMAGES_PER_BATCH, 1 + _PIXELS)
    return records[:, 1:], _checked_labels(records[:, 0])


def _python_batch(content: bytes) -> tuple[np.ndarray, np.ndarray]:
    batch = pickles.load(content)
    if not isinstance(batch, dict):
        raise ValueError("it holds no dictionary")
    # Keys are byte strings as Python 2 wrote them, or text where someone has saved them again.
    fields = {k.decode() if isinstance(k, bytes) else k: v for k, v in batch.items()}
    if missing := {"data", "labels"} - fields.keys():
        raise ValueError(f"it holds no {' and no '.join(sorted(missing))}")
    data, labels = fields["data"], fields["labels"]
    if not isinstance(data, pickles.Array) or data.values.ndim != 2:
        raise ValueError("its data are not a table of uint8")
    if isinstance(labels, pickles.Array):
        labels = labels.values.tolist()
    if not isinstance(labels, list) or not all(type(label) is int for label in labels):
        raise ValueError("its labels are not a list of whole numbers")
    if data.values.shape != (IMAGES_PER_BATCH, _PIXELS) or len(labels) != IMAGES_PER_BATCH:
        raise ValueError(f"{len(data.values):,} images instead of {IMAGES_PER_BATCH:,}")
    return data.values, _checked_labels(np.asarray(labels))


def _checked_labels(labels: np.ndarray) -> np.ndarray:
    if labels.dtype.kind not in "iu" or not 0 <= labels.min() <= labels.max() < len(CLASSES):
        raise ValueError("its labels are not whole numbers from 0 to 9")
    return labels.astype(np.int32)
