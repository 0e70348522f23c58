"""Reading a prepared tensorflow-datasets folder, ``DATA_DIR/NAME/VERSION``, without TensorFlow.

The folder is the one that stock tfds reads and writes. Records are read through tfds; only the PNG
decoding is ours, because tfds's decoder of single examples takes four times as long.
"""

import hashlib
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cifar_jax.data.cache import Source
from cifar_jax.data.dataset import IMAGE_SHAPE, Decoded, Split
from cifar_jax.data.progress import progress, reason
from cifar_jax.errors import UserError

_BATCH = 1000  # records read at a time


class TfdsFolder(NamedTuple):
    """What a prepared folder's metadata say: ``counts`` are images a split."""

    path: Path
    name: str
    format: str
    classes: tuple[str, ...]
    counts: dict[str, int]


def default_data_dir() -> Path:
    """$TFDS_DATA_DIR, or ~/tensorflow_datasets: where tfds itself looks."""
    return Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def inspect(path: Path) -> TfdsFolder:
    """What a prepared folder holds, by its JSON files, having made sure that its shards are there.

    Where shards of several formats lie side by side, ArrayRecord is chosen. Raises UserError for a
    folder that is unreadable or incomplete.
    """
    try:
        info = json.loads((path / "dataset_info.json").read_text())
        classes = tuple((path / "label.labels.txt").read_text().splitlines())
        counts = {s["name"]: sum(map(int, s["shardLengths"])) for s in info["splits"]}
        json.loads((path / "features.json").read_text())  # tfds reads it, and says less
        formats = [info.get("fileFormat", "tfrecord"), *info.get("alternativeFileFormats", [])]
        chosen = next((f for f in ("array_record", "tfrecord") if f in formats), None)
        if chosen is None:
            raise _broken(path, f"its records are {formats[0]}, not ArrayRecord or TFRecord")
        for shard in _shards(path, info, chosen):
            if not shard.is_file():
                raise _broken(path, f"{shard.name} is missing")
            if shard.stat().st_size == 0:
                raise _broken(path, f"{shard.name} is empty")
        if not {"train", "test"} <= counts.keys():
            raise _broken(path, f"its splits are {sorted(counts)}, not train and test")
        return TfdsFolder(path, info["name"], chosen, classes, counts)
    except FileNotFoundError as error:
        raise _broken(path, f"{Path(error.filename).name} is missing") from error
    except OSError as error:
        raise _broken(path, str(error.strerror)) from error
    except (ValueError, LookupError, TypeError, AttributeError) as error:
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
        raise _broken(path, str(error.strerror)) from error
    place = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]
    return Source(
        name=folder.name,
        entry=f"{folder.name}-{place}",
        signature=hashlib.sha256(json.dumps(files).encode()).hexdigest(),
        decode=lambda: decode(folder),
    )


def decode(folder: TfdsFolder) -> Decoded:
    """Every image of a prepared folder, in the order of its records.

    Shows progress on standard error. Raises UserError if records are damaged, or if TensorFlow is
    needed (TFRecord files) and not installed.
    """
    total = folder.counts["train"] + folder.counts["test"]
    records = _tfrecords if folder.format == "tfrecord" else _array_records
    splits = {}
    with progress(f"Decoding {folder.name} (once)", total) as advance:
        for name in ("train", "test"):
            count = folder.counts[name]
            split = Split(np.empty((count, *IMAGE_SHAPE), np.uint8), np.empty(count, np.int32))
            try:
                at = 0
                for batch in records(folder, name):
                    for record in batch:
                        split.images[at], split.labels[at] = _parse(record)
                        at += 1
                    advance(len(batch))
                if at != count:
                    raise ValueError(f"{at:,} images instead of {count:,}")
                if count and not 0 <= split.labels.min() <= split.labels.max() < len(
                    folder.classes
                ):
                    raise ValueError(f"labels beyond its {len(folder.classes)} classes")
            except UserError:
                raise
            # Damage shows as RuntimeError (array_record), DecodeError (protobuf), OSError or
            # SyntaxError (Pillow), or TensorFlow's own errors: there is no common base.
            except Exception as error:
                what = f"its {name} records are damaged ({reason(error)})"
                raise _broken(folder.path, what) from error
            splits[name] = split
    return Decoded(folder.classes, splits["train"], splits["test"])


def _parse(record: bytes) -> tuple[np.ndarray, int]:
    """Image and label of one serialised tf.train.Example."""
    from PIL import Image
    from tensorflow_datasets.proto import tf_example_pb2

    example = tf_example_pb2.Example.FromString(record)  # pyright: ignore[reportAttributeAccessIssue]
    feature = example.features.feature
    image = np.asarray(Image.open(io.BytesIO(feature["image"].bytes_list.value[0])))
    if image.shape != IMAGE_SHAPE or image.dtype != np.uint8:
        raise ValueError(f"an image is {image.dtype}{list(image.shape)}, not 32×32 RGB")
    return image, feature["label"].int64_list.value[0]


def _array_records(folder: TfdsFolder, split: str) -> Iterator[list[bytes]]:
    import tensorflow_datasets as tfds

    # tfds's decorators hide its signatures from type checkers.
    builder: Any = tfds.builder_from_directory(folder.path)
    raw = tfds.decode.DeserializeMethod.RAW_BYTES
    records = builder.as_data_source(split=split, deserialize_method=raw)
    for start in range(0, len(records), _BATCH):
        yield records.__getitems__(range(start, min(start + _BATCH, len(records))))


def _tfrecords(folder: TfdsFolder, split: str) -> Iterator[list[bytes]]:
    try:
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # or it reports on the processor
        import tensorflow as tf  # pyright: ignore[reportMissingImports, reportMissingModuleSource]
    except ImportError as error:
        raise UserError(
            f"{folder.path} holds TFRecord files, which only TensorFlow reads: "
            "`pip install tensorflow`, or set TFDS_DATA_DIR to another folder and prepare the data "
            "there with `cifar-jax data prepare` or `cifar-jax data import PATH`"
        ) from error
    tf.config.set_visible_devices([], "GPU")  # TensorFlow would take all of its memory
    info = json.loads((folder.path / "dataset_info.json").read_text())
    shards = [str(shard) for shard in _shards(folder.path, info, folder.format, split)]
    for batch in tf.data.TFRecordDataset(shards).batch(_BATCH).as_numpy_iterator():
        yield list(batch)


def _shards(path: Path, info: dict[str, Any], format: str, only: str | None = None) -> list[Path]:
    """The shard files of all splits, or of one, by tfds's naming."""
    default = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
    files = []
    for split in info["splits"]:
        if only not in (None, split["name"]):
            continue
        total = len(split["shardLengths"])
        for index in range(total):
            name = (split.get("filepathTemplate") or default).format(
                DATASET=info["name"],
                SPLIT=split["name"],
                FILEFORMAT=format,
                SHARD_X_OF_Y=f"{index:05d}-of-{total:05d}",
                SHARD_INDEX=f"{index:05d}",
                NUM_SHARDS=f"{total:05d}",
            )
            files.append(path / name)
    return files


def _broken(path: Path, what: str) -> UserError:
    return UserError(
        f"the dataset folder {path} cannot be used: {what}; move the folder away and run "
        "`cifar-jax data prepare` or `cifar-jax data import PATH`"
    )
