"""Tiny synthetic data in every form that CIFAR-10 comes in."""

import io
import pickle
import struct
import tarfile
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from cifar_jax.data.cifar10 import CLASSES
from cifar_jax.data.dataset import Decoded, Split

PER_BATCH = 4
BATCHES = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")


def make_images() -> Decoded:
    """20 training and 4 test images of noise, in five batches of 4 and one."""
    rng = np.random.default_rng(0)

    def split(count: int) -> Split:
        labels = rng.permutation(np.arange(count, dtype=np.int32) % 10)
        return Split(rng.integers(0, 256, (count, 32, 32, 3), np.uint8), labels)

    return Decoded(CLASSES, split(5 * PER_BATCH), split(PER_BATCH))


def _batches(images: Decoded) -> dict[str, Split]:
    train = [
        Split(*(part[start : start + PER_BATCH] for part in images.train))
        for start in range(0, 5 * PER_BATCH, PER_BATCH)
    ]
    return dict(zip(BATCHES, [*train, images.test], strict=True))


def _rows(split: Split) -> np.ndarray:
    return split.images.transpose(0, 3, 1, 2).reshape(len(split.labels), -1)


def _python_2_pickle(split: Split) -> bytes:
    """What Python 2 wrote, and Python 3 cannot: a dictionary with byte strings for text."""

    def number(value: int) -> bytes:
        return b"J" + value.to_bytes(4, "little", signed=True)

    data = _rows(split)
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    dtype = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNN" + 2 * number(-1) + b"K\x00tb"
    content = b"T" + data.size.to_bytes(4, "little") + data.tobytes()
    state = b"(K\x01" + number(data.shape[0]) + number(data.shape[1]) + b"\x86" + dtype
    labels = b"](" + b"".join(number(int(label)) for label in split.labels) + b"e"
    array += state + b"\x89" + content + b"tb"
    return b"\x80\x02}(U\x04data" + array + b"U\x06labels" + labels + b"u."


def write_python(folder: Path, images: Decoded, protocol: int | None = None) -> Path:
    """cifar-10-batches-py in ``folder``; with a ``protocol``, as Python 3 would save it again."""
    path = folder / "cifar-10-batches-py"
    path.mkdir(parents=True)
    for name, split in _batches(images).items():
        batch = {"labels": split.labels.tolist(), "data": _rows(split)}
        content = pickle.dumps(batch, protocol) if protocol else _python_2_pickle(split)
        (path / name).write_bytes(content)
    return path


def write_binary(folder: Path, images: Decoded) -> Path:
    """cifar-10-batches-bin in ``folder``."""
    path = folder / "cifar-10-batches-bin"
    path.mkdir(parents=True)
    for name, split in _batches(images).items():
        records = np.concatenate([split.labels[:, None].astype(np.uint8), _rows(split)], axis=1)
        (path / f"{name}.bin").write_bytes(records.tobytes())
    return path


def pack(path: Path) -> Path:
    """A compressed archive of a folder, beside it."""
    archive = path.with_suffix(".tar.gz")
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(path, arcname=path.name)
    return archive


def write_tree(folder: Path, images: Decoded, suffix: str = ".png") -> Path:
    """train/CLASS/*.png and test/CLASS/*.png in ``folder``."""
    for name, split in (("train", images.train), ("test", images.test)):
        for i, (image, label) in enumerate(zip(*split, strict=True)):
            file = folder / name / CLASSES[label] / f"{i:04d}{suffix}"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(file)
    return folder


def png_that_claims(width: int, height: int) -> bytes:
    """A PNG of 32×32 whose header says otherwise."""
    file = io.BytesIO()
    Image.new("RGB", (32, 32), "red").save(file, "png")
    content = bytearray(file.getvalue())
    content[16:24] = struct.pack(">2I", width, height)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    return bytes(content)


FORMS = {
    "python archive": lambda folder, images: pack(write_python(folder, images)),
    "binary archive": lambda folder, images: pack(write_binary(folder, images)),
    "unpacked python archive": write_python,
    "unpacked binary archive": write_binary,
    "image folder": write_tree,
}
