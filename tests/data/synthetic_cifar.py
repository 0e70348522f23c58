"""Write a tiny synthetic CIFAR-10 in the format of the official archive."""

import hashlib
import io
import pickle
import struct
import tarfile
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from cifar_jax.data.cifar10 import ARCHIVE, CLASSES
from cifar_jax.data.cifar_archive import Archive
from cifar_jax.data.dataset import Arrays, Split

PER_BATCH = 4


def make_images() -> Arrays:
    """Return 20 training images and 4 test images with random pixels."""
    rng = np.random.default_rng(0)

    def split(count: int) -> Split:
        labels = rng.permutation(np.arange(count, dtype=np.int32) % 10)
        return Split(rng.integers(0, 256, (count, 32, 32, 3), np.uint8), labels)

    return Arrays(CLASSES, split(5 * PER_BATCH), split(PER_BATCH))


def write_batches(folder: Path, images: Arrays) -> Path:
    """Write the images as a folder `cifar-10-batches-py` and return its path."""
    path = folder / ARCHIVE.folder
    path.mkdir(parents=True)
    parts = [
        Split(*(part[start : start + PER_BATCH] for part in images.train))
        for start in range(0, 5 * PER_BATCH, PER_BATCH)
    ]
    for name, split in zip(ARCHIVE.files, [*parts, images.test], strict=True):
        (path / name).write_bytes(_python_2_pickle(split))
    return path


def write_cifar100(folder: Path, images: Arrays, coarse: np.ndarray) -> Path:
    """Write images as a folder `cifar-100-python` and return the path of this folder.

    The coarse label of an image is `coarse[label]`, for the fine label `label`.
    """
    path = folder / "cifar-100-python"
    path.mkdir(parents=True)
    names = {b"fine_label_names": images.classes, b"coarse_label_names": range(20)}
    meta = {key: [f"{name}".encode() for name in values] for key, values in names.items()}
    (path / "meta").write_bytes(pickle.dumps(meta, protocol=2))
    for name, split in (("train", images.train), ("test", images.test)):
        batch = {
            b"data": split.images.transpose(0, 3, 1, 2).reshape(len(split.labels), -1),
            b"fine_labels": split.labels.tolist(),
            b"coarse_labels": coarse[split.labels].tolist(),
        }
        (path / name).write_bytes(pickle.dumps(batch, protocol=2))
    return path


def pack(path: Path, name: str = "cifar-10-python.tar.gz") -> Path:
    """Compress a folder to a .tar.gz archive next to it. Return the path of the archive."""
    archive = path.with_name(name)
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(path, arcname=path.name)
    return archive


def with_md5s(archive: Archive, path: Path) -> Archive:
    """Return a copy of `archive` that expects the MD5s of the files in the folder `path`."""
    md5s = {name: hashlib.md5((path / name).read_bytes()).hexdigest() for name in archive.files}
    return archive._replace(files=md5s)


def digest(path: Path, algorithm: str) -> str:
    return f"{algorithm}:{hashlib.new(algorithm, path.read_bytes()).hexdigest()}"


def _python_2_pickle(split: Split) -> bytes:
    """Return a batch as a Python 2 pickle, as in CIFAR-10. Python 3 cannot write this format."""

    def number(value: int) -> bytes:
        return b"J" + value.to_bytes(4, "little", signed=True)

    data = split.images.transpose(0, 3, 1, 2).reshape(len(split.labels), -1)
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    dtype = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNN" + 2 * number(-1) + b"K\x00tb"
    content = b"T" + data.size.to_bytes(4, "little") + data.tobytes()
    state = b"(K\x01" + number(data.shape[0]) + number(data.shape[1]) + b"\x86" + dtype
    labels = b"](" + b"".join(number(int(label)) for label in split.labels) + b"e"
    array += state + b"\x89" + content + b"tb"
    return b"\x80\x02}(U\x04data" + array + b"U\x06labels" + labels + b"u."


def png_with_size(width: int, height: int) -> bytes:
    """Return a 32×32 PNG file whose header claims the size `width` × `height`."""
    file = io.BytesIO()
    Image.new("RGB", (32, 32), "red").save(file, "png")
    content = bytearray(file.getvalue())
    content[16:24] = struct.pack(">2I", width, height)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    return bytes(content)
