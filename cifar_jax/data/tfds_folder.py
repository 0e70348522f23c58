"""Read a data set in the format of TensorFlow Datasets (tfds), without TensorFlow.

The data set is a folder `DATA_DIR/NAME/VERSION`, as the package tensorflow-datasets writes it. The
images are in ArrayRecord or TFRecord files, called shards. Each record is a serialized
`tf.train.Example` message with a PNG or JPEG image and a label.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cifar_jax.data.cache import Source, path_digest
from cifar_jax.data.dataset import Arrays, Labeled, Split
from cifar_jax.data.images import DEFAULT_TARGET, Target, ignore_warnings
from cifar_jax.data.images import decode as decode_image
from cifar_jax.data.progress import progress
from cifar_jax.data.records import read_array_record, read_tfrecord
from cifar_jax.errors import UserError, nearest
from cifar_jax.files import home_path

_INFO = "dataset_info.json"
# Pattern of a data set's name, with or without a configuration.
_NAME = r"\w+(/[\w.+-]*\w)?"


class Shard(NamedTuple):
    """A file with images in a tfds folder, and the number of images in the file."""

    path: Path
    images: int


class TfdsFolder(NamedTuple):
    """The metadata of a tfds folder.

    Attributes:
      path: the folder.
      format: `array_record` or `tfrecord`.
      classes: names of the classes, or `0`, `1`, … if the classes have no names.
      has_names: whether the classes have names.
      shards: the files of each split.
    """

    path: Path
    format: str
    classes: tuple[str, ...]
    has_names: bool
    shards: dict[str, list[Shard]]

    @property
    def name(self) -> str:
        """The name of the tfds data set, such as `cifar10`."""
        return self.path.parent.name

    @property
    def counts(self) -> dict[str, int]:
        """The number of images in each split."""
        return {name: sum(s.images for s in shards) for name, shards in self.shards.items()}

    @property
    def test(self) -> str:
        """Name of the split with the test images: `test`, or `validation` if there is no `test`."""
        return "test" if "test" in self.shards else "validation"


def default_data_dir() -> Path:
    """Return the folder of all tfds data sets: `$TFDS_DATA_DIR` or `~/tensorflow_datasets`."""
    folder = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return home_path(folder, "TFDS_DATA_DIR")


def find(name: str, data_dir: Path) -> Path:
    """Return the folder of a data set that tfds has prepared.

    Args:
      name: `NAME`, `NAME/CONFIG`, `NAME:VERSION` or `NAME/CONFIG:VERSION`. Without VERSION,
        the newest version is used.
      data_dir: the folder of all tfds data sets.

    Raises:
      UserError: the data set is not prepared.
    """
    set_name, _, version = name.partition(":")
    if not re.fullmatch(_NAME, set_name):
        raise UserError(
            f"tfds:{name} is not the name of a tfds data set: give tfds:NAME, tfds:NAME/CONFIG or "
            "tfds:NAME:VERSION"
        )
    versions = _versions(data_dir / set_name)
    if version in versions or (versions and not version):
        return data_dir / set_name / (version or versions[-1])
    if versions:
        raise UserError(
            f"version {version} of the tfds data set {set_name} is not prepared in {data_dir}: "
            f"choose {' or '.join(versions)}"
        )
    configs = sorted(file.parents[1].name for file in data_dir.glob(f"{set_name}/*/*/{_INFO}"))
    if configs:
        names = " or ".join(f"tfds:{set_name}/{config}" for config in dict.fromkeys(configs))
        raise UserError(f"tfds:{name} needs the name of a configuration: choose {names}")
    names = prepared(data_dir)
    raise UserError(
        f"the tfds data set {name} is not prepared in {data_dir}{nearest(name, names) or '.'} "
        f"Prepared there: {', '.join(names) or 'nothing'}. cifar-jax does not download it: "
        f"prepare it with tensorflow_datasets.load({set_name!r}), or set TFDS_DATA_DIR to another "
        "folder."
    )


def prepared(data_dir: Path) -> list[str]:
    """Return the names of the data sets that tfds has prepared, as NAME or NAME/CONFIG."""
    infos = [*data_dir.glob(f"*/*/{_INFO}"), *data_dir.glob(f"*/*/*/{_INFO}")]
    folders = {info.parents[1] for info in infos}
    names = [folder.relative_to(data_dir).as_posix() for folder in folders if _versions(folder)]
    return sorted(name for name in names if re.fullmatch(_NAME, name))


def _versions(path: Path) -> list[str]:
    """Return the prepared versions of a data set, from the oldest to the newest."""
    versions = [file.parent.name for file in path.glob(f"*/{_INFO}")]
    numbers = [v for v in versions if re.fullmatch(r"\d+\.\d+\.\d+", v)]
    return sorted(numbers, key=lambda version: [int(part) for part in version.split(".")])


def inspect(path: Path) -> TfdsFolder:
    """Read the metadata of a tfds folder, and check that all shards exist.

    If the folder has shards in both formats, the ArrayRecord shards are used.

    Raises:
      UserError: the folder is damaged or incomplete, or has no features `image` and `label`.
    """
    try:
        info = json.loads((path / _INFO).read_text("utf-8"))
        number = _check_features(path)
        names = path / "label.labels.txt"
        # tfds does not write `label.labels.txt` if the classes have no names, as for MNIST.
        has_names = number is None or names.exists()
        classes = tuple(
            names.read_text("utf-8").splitlines() if has_names else map(str, range(number or 0))
        )
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
    folder = TfdsFolder(path, format, classes, has_names, shards)
    if folder.test not in shards:
        raise _unusable(path, f"its splits are {sorted(shards)}, not train and test")
    for shard in (shard for split in shards.values() for shard in split):
        if not shard.path.exists():
            raise _unusable(path, f"{shard.path.name} is missing")
    return folder


def _check_features(path: Path) -> int | None:
    """Return the number of classes in `features.json`, or None if there is no such file.

    Raises:
      UserError: the records have no 8-bit image called `image` or no class label called `label`.
    """
    file = path / "features.json"
    if not file.exists():
        return None
    features = json.loads(file.read_text("utf-8")).get("featuresDict", {}).get("features", {})
    image, label = (features.get(name, {}) for name in ("image", "label"))
    if "image" not in image or "classLabel" not in label:
        names = ", ".join(sorted(features))
        raise _unusable(
            path, f"its features are {names or 'unnamed'}, but `image` and `label` are needed"
        )
    if (dtype := image["image"].get("dtype", "uint8")) != "uint8":
        raise _unusable(path, f"its images are {dtype}, not uint8")
    return int(label["classLabel"]["numClasses"])


def source(path: Path, name: str | None = None, target: Target = DEFAULT_TARGET) -> Source:
    """Return a tfds folder as a `cache.Source`.

    The signature of the source changes if the name, size or modification time of a file changes.

    Args:
      path: the folder of one version of a data set.
      name: name of the data set in messages and model cards. None: the name of the folder. In this
        case, the classes must have names.
      target: size of the returned images, and the way to make them square.
    """
    folder = inspect(path)
    if not (folder.has_names or name):
        raise _unusable(path, "label.labels.txt is missing")
    if "train" not in folder.shards:
        raise _unusable(path, f"its splits are {sorted(folder.shards)}, not train and test")
    files = [(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in sorted(path.iterdir())]
    notes = []
    if folder.test != "test":
        notes.append(f"test images: the split {folder.test}, because there is no split test")
    elif "validation" in folder.shards:
        notes.append("validation images: the split validation (data.validation is not used)")
    if unused := sorted(folder.shards.keys() - {"train", "validation", "test"}):
        notes.append(f"not used: the split {', '.join(unused)}")
    return Source(
        name=name or folder.name,
        entry=f"{folder.name}-{path_digest(path)}{target.suffix}",
        signature=hashlib.sha256(json.dumps(files).encode()).hexdigest(),
        decode=lambda: decode(folder, target),
        notes=tuple(notes),
    )


def labeled(name: str, data_dir: Path, target: Target = DEFAULT_TARGET) -> Labeled:
    """Read the test images of a data set that tfds has prepared. The result is not cached.

    Args:
      name: see `find`.
      data_dir: the folder of all tfds data sets.
      target: size of the returned images, and the way to make them square.

    Raises:
      UserError: the data set is not prepared, is damaged, or has no test images.
    """
    folder = inspect(find(name, data_dir))
    with progress(f"Decoding {folder.name}", folder.counts[folder.test]) as advance:
        split = decode_split(folder, folder.test, target, advance)
    notes = (f"evaluated images: the split {folder.test} in {folder.path}",)
    return Labeled(f"tfds:{name}", *split, folder.classes if folder.has_names else None, notes)


def decode(folder: TfdsFolder, target: Target = DEFAULT_TARGET) -> Arrays:
    """Decode the images of a tfds folder, in the order of the records.

    The images of a split `validation` are added to the end of the training images.

    Raises:
      UserError: a shard is damaged.
    """
    names = [name for name in ("train", "validation", "test") if name in folder.shards]
    with progress(
        f"Decoding {folder.name} (once)", sum(folder.counts[n] for n in names)
    ) as advance:
        splits = {name: decode_split(folder, name, target, advance) for name in names}
    test, train, reserved = splits.pop(folder.test), splits["train"], None
    if validation := splits.get("validation"):
        reserved = len(validation.labels)
        train = Split(*(np.concatenate(parts) for parts in zip(train, validation, strict=True)))
    return Arrays(folder.classes, train, test, reserved)


def decode_split(
    folder: TfdsFolder, split: str, target: Target, advance: Callable[[int], None]
) -> Split:
    """Decode the images of one split, in the order of the records.

    Gray images become three equal channels. Images of another size are resized like image files.

    Raises:
      UserError: a shard is damaged.
    """
    read = read_tfrecord if folder.format == "tfrecord" else read_array_record
    total = folder.counts[split]
    images, labels = (
        np.zeros((total, target.size, target.size, 3), np.uint8),
        np.zeros(total, np.int32),
    )
    for shard, end in zip(
        folder.shards[split],
        np.cumsum([shard.images for shard in folder.shards[split]]),
        strict=True,
    ):
        index = start = int(end) - shard.images
        try:
            with ignore_warnings():
                for record in read(shard.path):
                    image, label = _parse(record, target)
                    if not 0 <= label < len(folder.classes):
                        raise ValueError(f"label {label} with only {len(folder.classes)} classes")
                    if index < end:
                        images[index], labels[index] = image, label
                        advance(1)
                    index += 1
            if (count := index - start) != shard.images:
                raise ValueError(f"{count:,} images instead of {shard.images:,}")
        # For a damaged shard, array_record raises RuntimeError, and protobuf raises DecodeError.
        except Exception as error:
            # Show only messages of this package. Those of the libraries do not help a user.
            detail = f" ({error})" if type(error) in (ValueError, UserError) else ""
            raise _unusable(folder.path, f"{shard.path.name} is damaged{detail}") from error
    return Split(images, labels)


def _parse(record: bytes, target: Target) -> tuple[np.ndarray, int]:
    """Return the image and the label of a serialized `tf.train.Example`."""
    from tensorflow_datasets.proto import tf_example_pb2

    example = tf_example_pb2.Example.FromString(record)  # pyright: ignore[reportAttributeAccessIssue]
    feature = example.features.feature
    image = decode_image(feature["image"].bytes_list.value[0], "an image", target=target)
    return image, feature["label"].int64_list.value[0]


def _unusable(path: Path, problem: str) -> UserError:
    remedy = "Prepare the data set again with tensorflow_datasets, or choose another data set."
    if path.parent.name in ("cifar10", "cifar100"):
        remedy = (
            "Move the folder away, then run `cifar-jax data prepare` or `cifar-jax data import "
            "PATH`."
        )
    return UserError(f"the data folder {path} cannot be used: {problem}. {remedy}")
