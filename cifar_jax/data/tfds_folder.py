"""Reading a prepared tensorflow-datasets folder, ``DATA_DIR/NAME/VERSION``, without TensorFlow.

The folder is the one that stock tfds reads and writes, in ArrayRecord or TFRecord form: shards of
serialised tf.train.Example protos, each with an image in PNG form and a label.
"""

import hashlib
import io
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cifar_jax.data.cache import Source
from cifar_jax.data.dataset import IMAGE_SHAPE, Decoded, Split
from cifar_jax.data.progress import progress, reason
from cifar_jax.data.tfrecord import read_tfrecord
from cifar_jax.errors import UserError

_BATCH = 1000  # records read at a time
_MIN_RECORD = 60  # bytes; a PNG's frame alone takes more


class Shard(NamedTuple):
    """A file of so many images."""

    path: Path
    images: int


class TfdsFolder(NamedTuple):
    """What a prepared folder's metadata say: ``shards`` are those of each split, in order."""

    path: Path
    name: str
    format: str
    classes: tuple[str, ...]
    shards: dict[str, list[Shard]]

    @property
    def counts(self) -> dict[str, int]:
        """Images a split."""
        return {name: sum(s.images for s in shards) for name, shards in self.shards.items()}


def default_data_dir() -> Path:
    """$TFDS_DATA_DIR, or ~/tensorflow_datasets: where tfds itself looks."""
    return Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def inspect(path: Path) -> TfdsFolder:
    """What a prepared folder holds, by its JSON files, having made sure that its shards are there.

    Where shards of several formats lie side by side, ArrayRecord is chosen. Raises UserError for a
    folder that is unreadable or incomplete.
    """
    try:
        info = json.loads((path / "dataset_info.json").read_text("utf-8"))
        classes = tuple((path / "label.labels.txt").read_text("utf-8").splitlines())
        if not re.fullmatch(r"\w+", info["name"]):
            raise ValueError(f"its name is {info['name']!r}")
        formats = [info.get("fileFormat", "tfrecord"), *info.get("alternativeFileFormats", [])]
        chosen = next((f for f in ("array_record", "tfrecord") if f in formats), None)
        if chosen is None:
            raise _broken(path, f"its records are {formats[0]}, not ArrayRecord or TFRecord")
        shards = {s["name"]: _shards(path, info["name"], s, chosen) for s in info["splits"]}
        for shard in (shard for split in shards.values() for shard in split):
            size = shard.path.stat().st_size
            if size == 0:
                raise _broken(path, f"{shard.path.name} is empty")
            if not 0 <= shard.images <= size / _MIN_RECORD:
                raise _broken(path, f"{shard.path.name} is too small for {shard.images:,} images")
        if not {"train", "test"} <= shards.keys():
            raise _broken(path, f"its splits are {sorted(shards)}, not train and test")
        return TfdsFolder(path, info["name"], chosen, classes, shards)
    except FileNotFoundError as error:
        raise _broken(path, f"{Path(error.filename).name} is missing") from error
    except OSError as error:
        raise _broken(path, error.strerror or reason(error)) from error
    except (
        *(ValueError, LookupError, TypeError, AttributeError),
        *(OverflowError, RecursionError),
    ) as error:
        raise _broken(path, f"its metadata are damaged ({reason(error)})") from error


def source(path: Path) -> Source:
    """A prepared folder as a source; its signature covers its files' names, sizes and times."""
    folder = inspect(path)
    try:
        files = [
            (file.name, file.stat().st_size, file.stat().st_mtime_ns)
            for file in sorted(path.iterdir())
        ]
    except OSError as error:
        raise _broken(path, error.strerror or reason(error)) from error
    place = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:12]
    return Source(
        name=folder.name,
        entry=f"{folder.name}-{place}",
        signature=hashlib.sha256(json.dumps(files).encode()).hexdigest(),
        decode=lambda: decode(folder),
    )


def decode(folder: TfdsFolder) -> Decoded:
    """Every image of a prepared folder, in the order of its records.

    Shows progress on standard error. Raises UserError if a shard is damaged.
    """
    counts = folder.counts
    splits = {}
    with progress(f"Decoding {folder.name} (once)", counts["train"] + counts["test"]) as advance:
        for name in ("train", "test"):
            images = np.empty((counts[name], *IMAGE_SHAPE), np.uint8)
            labels = np.empty(counts[name], np.int32)
            at = 0
            for shard in folder.shards[name]:
                part = slice(at, at + shard.images)
                try:
                    for count in _read_shard(shard, folder, Split(images[part], labels[part])):
                        advance(count)
                # Damage shows as RuntimeError (array_record), DecodeError (protobuf), OSError or
                # SyntaxError (Pillow): there is no common base.
                except Exception as error:
                    what = f"{shard.path.name} is damaged ({reason(error)})"
                    raise _broken(folder.path, what) from error
                at += shard.images
            splits[name] = Split(images, labels)
    return Decoded(folder.classes, splits["train"], splits["test"])


def _read_shard(shard: Shard, folder: TfdsFolder, into: Split) -> Iterator[int]:
    """Fill ``into`` with the shard's images and labels; yields how many have come each time."""
    read = read_tfrecord if folder.format == "tfrecord" else _read_array_record
    at = 0
    for batch in read(shard.path):
        if at + len(batch) > shard.images:
            raise ValueError(f"more images than {shard.images:,}")
        for record in batch:
            image, label = _parse(record)
            if not 0 <= label < len(folder.classes):
                raise ValueError(f"label {label} is beyond its {len(folder.classes)} classes")
            into.images[at], into.labels[at] = image, label
            at += 1
        yield len(batch)
    if at != shard.images:
        raise ValueError(f"{at:,} images instead of {shard.images:,}")


def _parse(record: bytes) -> tuple[np.ndarray, int]:
    """Image and label of one serialised tf.train.Example."""
    from PIL import Image
    from tensorflow_datasets.proto import tf_example_pb2

    example = tf_example_pb2.Example.FromString(record)  # pyright: ignore[reportAttributeAccessIssue]
    feature = example.features.feature
    # Of the formats that Pillow knows some run other programs.
    file = io.BytesIO(feature["image"].bytes_list.value[0])
    with Image.open(file, formats=("PNG", "JPEG")) as image:
        if (*image.size[::-1], len(image.getbands())) != IMAGE_SHAPE or image.mode != "RGB":
            width, height = image.size
            raise ValueError(f"an image is {width}×{height} {image.mode}, not 32×32 RGB")
        return np.asarray(image), feature["label"].int64_list.value[0]


def _read_array_record(path: Path) -> Iterator[list[bytes]]:
    from array_record.python.array_record_module import ArrayRecordReader

    reader = ArrayRecordReader(os.fsencode(path))
    try:
        count = reader.num_records()
        for start in range(0, count, _BATCH):
            yield reader.read(start, min(start + _BATCH, count))
    finally:
        reader.close()


def _shards(path: Path, dataset: str, split: dict, format: str) -> list[Shard]:
    """The shards of a split, by tfds's naming."""
    template = split.get("filepathTemplate") or "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
    total = len(split["shardLengths"])
    shards = []
    for index, count in enumerate(split["shardLengths"]):
        fields = {
            "DATASET": dataset,
            "SPLIT": split["name"],
            "FILEFORMAT": format,
            "SHARD_X_OF_Y": f"{index:05d}-of-{total:05d}",
            "SHARD_INDEX": f"{index:05d}",
            "NUM_SHARDS": f"{total:05d}",
        }
        name = re.sub(r"\{(\w+)\}", lambda field, of=fields: of[field[1]], template)
        if Path(name).name != name:
            raise ValueError(f"a shard is called {name!r}")
        shards.append(Shard(path / name, int(count)))
    return shards


def _broken(path: Path, what: str) -> UserError:
    return UserError(
        f"the dataset folder {path} cannot be used: {what}; move the folder away and run "
        "`cifar-jax data prepare` or `cifar-jax data import PATH`"
    )
