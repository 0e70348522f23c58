"""Reading the official CIFAR-10 archives, python or binary, packed or unpacked.

Both hold five training batches and a test batch of 10,000 images each, as rows of 1,024 red, green
and blue values; format: https://www.cs.toronto.edu/~kriz/cifar.html
"""

import hashlib
import io
import pickle
import tarfile
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

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
                    batches[file.name] = file.read_bytes()
                except OSError as error:
                    raise UserError(f"{file} cannot be read: {error.strerror}") from error
    return _decode(path, batches)


def read_archive(path: Path) -> Archive:
    """Read a tar archive, compressed or not. Nothing is unpacked onto the disk.

    Raises UserError if the file is no archive, or one that is truncated or lacks batches.
    """
    try:
        archive = tarfile.open(path)  # noqa: SIM115
    except tarfile.TarError as error:
        raise UserError(
            f"{path} is not a tar archive, or a damaged one: download it again"
        ) from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    batches = {}
    with archive:
        try:
            for member in archive:
                name = Path(member.name).name
                if not member.isfile() or name.removesuffix(".bin") not in _BATCHES:
                    continue
                if member.size > _MAX_BATCH_BYTES:
                    raise UserError(f"{path}: {member.name} is too large for a CIFAR-10 batch")
                file = archive.extractfile(member)
                batches[name] = file.read() if file else b""
        except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
            raise UserError(f"{path} is truncated or damaged: download it again") from error
    return _decode(path, batches)


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
    batch = _BatchUnpickler(io.BytesIO(content), encoding="bytes").load()
    if not isinstance(batch, dict):
        raise ValueError("it holds no dictionary")
    # Keys are byte strings as Python 2 wrote them, or text where someone has saved them again.
    fields = {k.decode() if isinstance(k, bytes) else k: v for k, v in batch.items()}
    data, labels = fields["data"], np.asarray(fields["labels"])
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8:
        raise ValueError("its data are not an array of uint8")
    if data.shape != (IMAGES_PER_BATCH, _PIXELS) or labels.shape != (IMAGES_PER_BATCH,):
        raise ValueError(f"{len(data):,} images instead of {IMAGES_PER_BATCH:,}")
    return data, _checked_labels(labels)


def _checked_labels(labels: np.ndarray) -> np.ndarray:
    if labels.dtype.kind not in "iu" or not 0 <= labels.min() <= labels.max() < len(CLASSES):
        raise ValueError("its labels are not whole numbers from 0 to 9")
    return labels.astype(np.int32)


def _encode(text: str, encoding: str) -> bytes:
    """Stands in for ``_codecs.encode``, which Python 3 puts into pickles of protocol 2."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"encoding {encoding!r} has no place in a batch")
    return text.encode(encoding)


# A pickle can name any function there is; a batch needs only these, which build arrays.
_REBUILD_ARRAY: Any = np.empty(0).__reduce__()[0]
_FROM_BUFFER: Any = np.empty(0).__reduce_ex__(5)[0]
_ADMITTED = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "_reconstruct"): _REBUILD_ARRAY,
    ("numpy._core.multiarray", "_reconstruct"): _REBUILD_ARRAY,
    ("numpy.core.numeric", "_frombuffer"): _FROM_BUFFER,
    ("numpy._core.numeric", "_frombuffer"): _FROM_BUFFER,
    ("_codecs", "encode"): _encode,
}


class _BatchUnpickler(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str) -> Any:
        try:
            return _ADMITTED[module_name, global_name]
        except KeyError:
            raise pickle.UnpicklingError(
                f"{module_name}.{global_name} has no place in a batch"
            ) from None
