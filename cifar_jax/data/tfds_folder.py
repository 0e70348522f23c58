"""Read a data set in the format of TensorFlow Datasets (tfds), without TensorFlow.

The data set is a folder `DATA_DIR/NAME/VERSION`. Stock tfds writes and reads the same folders. The
images are in ArrayRecord or TFRecord files, called shards. Each record is a serialized
`tf.train.Example` message with a PNG image and a label.
"""

import hashlib
import io
import json
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cifar_jax.data.cache import Source, path_digest
from cifar_jax.data.dataset import IMAGE_SHAPE, Arrays, Split
from cifar_jax.data.progress import progress
from cifar_jax.errors import UserError
from cifar_jax.files import home_path

_BATCH = 1000  # Number of records that are read at a time.


class Shard(NamedTuple):
    """A file of a tfds folder, and the number of images in it."""

    path: Path
    images: int


class TfdsFolder(NamedTuple):
    """The metadata of a tfds folder. `shards` maps the name of each split to its files."""

    path: Path
    format: str
    classes: tuple[str, ...]
    shards: dict[str, list[Shard]]

    @property
    def name(self) -> str:
        """The name of the data set."""
        return self.path.parent.name

    @property
    def counts(self) -> dict[str, int]:
        """The number of images in each split."""
        return {name: sum(s.images for s in shards) for name, shards in self.shards.items()}


def default_data_dir() -> Path:
    """Return the folder of all tfds data sets: `$TFDS_DATA_DIR` or `~/tensorflow_datasets`."""
    folder = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return home_path(folder, "TFDS_DATA_DIR")


def inspect(path: Path) -> TfdsFolder:
    """Read the metadata of a tfds folder, and check that all shards exist.

    If the folder has shards in both formats, the ArrayRecord shards are used.

    Raises:
      UserError: the folder is damaged or incomplete.
    """
    try:
        info = json.loads((path / "dataset_info.json").read_text("utf-8"))
        classes = tuple((path / "label.labels.txt").read_text("utf-8").splitlines())
        formats = [info.get("fileFormat", "tfrecord"), *info.get("alternativeFileFormats", [])]
        format = next((f for f in ("array_record", "tfrecord") if f in formats), None)
        if format is None:
            raise _unusable(path, f"its format is {formats[0]}, not array_record or tfrecord")
        shards = {}
        for split in info["splits"]:
            lengths = [int(length) for length in split["shardLengths"]]
            prefix = f"{info['name']}-{split['name']}.{format}"
            shards[split["name"]] = [
                Shard(path / f"{prefix}-{index:05d}-of-{len(lengths):05d}", length)
                for index, length in enumerate(lengths)
            ]
    except FileNotFoundError as error:
        raise _unusable(path, f"{Path(error.filename).name} is missing") from error
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise _unusable(path, "its metadata are damaged") from error
    if not {"train", "test"} <= shards.keys():
        raise _unusable(path, f"its splits are {sorted(shards)}, not train and test")
    for shard in (shard for split in shards.values() for shard in split):
        if not shard.path.exists():
            raise _unusable(path, f"{shard.path.name} is missing")
    return TfdsFolder(path, format, classes, shards)


def source(path: Path) -> Source:
    """Return a tfds folder as a `cache.Source`.

    The signature of the source covers the names, sizes and modification times of all files.
    """
    folder = inspect(path)
    files = [(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in sorted(path.iterdir())]
    return Source(
        name=folder.name,
        entry=f"{folder.name}-{path_digest(path)}",
        signature=hashlib.sha256(json.dumps(files).encode()).hexdigest(),
        decode=lambda: decode(folder),
    )


def decode(folder: TfdsFolder) -> Arrays:
    """Decode the images of a tfds folder, in the order of the records.

    Raises:
      UserError: a shard is damaged.
    """
    total = folder.counts["train"] + folder.counts["test"]
    with progress(f"Decoding {folder.name} (once)", total) as advance:
        train = _decode_split(folder, "train", advance)
        test = _decode_split(folder, "test", advance)
    return Arrays(folder.classes, train, test)


def _decode_split(folder: TfdsFolder, split: str, advance: Callable[[int], None]) -> Split:
    read = read_tfrecord if folder.format == "tfrecord" else _read_array_record
    images, labels = [], []
    for shard in folder.shards[split]:
        start = len(labels)
        try:
            for record in read(shard.path):
                image, label = _parse(record)
                if not 0 <= label < len(folder.classes):
                    raise ValueError(f"label {label} of {len(folder.classes)} classes")
                images.append(image)
                labels.append(label)
                advance(1)
            if (count := len(labels) - start) != shard.images:
                raise ValueError(f"{count:,} images instead of {shard.images:,}")
        # A damaged shard raises RuntimeError in array_record, DecodeError in protobuf, and OSError
        # or SyntaxError in Pillow.
        except Exception as error:
            # Messages of the libraries name bytes and chunks, which says nothing to a user.
            detail = f" ({error})" if type(error) is ValueError else ""
            raise _unusable(folder.path, f"{shard.path.name} is damaged{detail}") from error
    return Split(np.stack(images), np.array(labels, np.int32))


def _parse(record: bytes) -> tuple[np.ndarray, int]:
    """Return the image and the label of a serialized `tf.train.Example`."""
    from PIL import Image
    from tensorflow_datasets.proto import tf_example_pb2

    example = tf_example_pb2.Example.FromString(record)  # pyright: ignore[reportAttributeAccessIssue]
    feature = example.features.feature
    file = io.BytesIO(feature["image"].bytes_list.value[0])
    # Other formats are not allowed, because Pillow runs programs to read some of them.
    with Image.open(file, formats=("PNG", "JPEG")) as image:
        if (*image.size[::-1], len(image.getbands())) != IMAGE_SHAPE or image.mode != "RGB":
            width, height = image.size
            raise ValueError(f"an image is {width}×{height} {image.mode}, not 32×32 RGB")
        return np.asarray(image), feature["label"].int64_list.value[0]


def _read_array_record(path: Path) -> Iterator[bytes]:
    from array_record.python.array_record_module import ArrayRecordReader

    reader = ArrayRecordReader(os.fsencode(path))
    try:
        count = reader.num_records()
        for start in range(0, count, _BATCH):
            yield from reader.read(start, min(start + _BATCH, count))
    finally:
        reader.close()


def read_tfrecord(path: Path) -> Iterator[bytes]:
    """Yield the records of a TFRecord file.

    A record consists of the length of the content as 8 little-endian bytes, the masked CRC-32C of
    the length, the content, and the masked CRC-32C of the content:
    https://www.tensorflow.org/tutorials/load_data/tfrecord#tfrecords_format_details

    Raises:
      ValueError: a checksum is wrong, or the file ends within a record.
    """
    remaining = path.stat().st_size
    with path.open("rb") as file:
        while header := file.read(12):
            length = struct.unpack("<Q", _verified(header, 8))[0]
            remaining -= 12 + length + 4
            if remaining < 0:  # Check before `read` allocates memory for a wrong length.
                raise ValueError("it ends within a record")
            yield _verified(file.read(length + 4), length)


def _verified(content: bytes, length: int) -> bytes:
    """Return the first `length` bytes. Raise ValueError if the checksum after them is wrong."""
    import google_crc32c

    if len(content) != length + 4:
        raise ValueError("it ends within a record")
    body = content[:length]
    crc = google_crc32c.value(body)
    masked = ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
    if struct.unpack("<I", content[length:])[0] != masked:
        raise ValueError("a checksum is wrong")
    return body


def _unusable(path: Path, problem: str) -> UserError:
    return UserError(
        f"the data folder {path} cannot be used: {problem}. Move the folder away, then run "
        "`cifar-jax data prepare` or `cifar-jax data import PATH`."
    )
