"""Read labeled images from NumPy files: `.npz` archives, and pairs of `.npy` files."""

import hashlib
import json
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from cifar_jax.data.cache import Source, path_digest
from cifar_jax.data.dataset import Arrays, Labeled, Split
from cifar_jax.data.images import DEFAULT_TARGET, Target, fit
from cifar_jax.errors import UserError, counted
from cifar_jax.files import expand_home

# Increase this number if a change to this module changes the decoded arrays. Cache entries with
# another number are ignored.
_VERSION = 2
# Number of images that are converted at a time.
_BLOCK = 1000

# Names of the arrays with images and labels, for each split. The first pair is from Keras, the
# second from MedMNIST.
_KEYS = {
    "train": [("x_train", "y_train"), ("train_images", "train_labels")],
    "validation": [("x_val", "y_val"), ("val_images", "val_labels")],
    "test": [("x_test", "y_test"), ("test_images", "test_labels")],
}
_PAIR = ("images", "labels")


def npz_source(path: Path, target: Target = DEFAULT_TARGET) -> Source:
    """Return the training and test images of an `.npz` file as a `cache.Source`.

    Raises:
      UserError: the file is missing.
    """
    path = expand_home(path).absolute()
    stat = _existing(path).stat()
    content = json.dumps([_VERSION, stat.st_size, stat.st_mtime_ns, target])
    return Source(
        name=f"npz:{path.name}",
        entry=f"npz-{path_digest(path)}{target.suffix}",
        signature=hashlib.sha256(content.encode()).hexdigest(),
        decode=lambda: read_npz(path, target),
    )


def read_npz(path: Path, target: Target = DEFAULT_TARGET) -> Arrays:
    """Read the training, validation and test images of an `.npz` file.

    Raises:
      UserError: arrays are missing or do not match, or a class has no training image.
    """
    with _open(path) as arrays:
        splits = {
            name: _split(path, arrays, keys, target)
            for name in _KEYS
            if (keys := _find(arrays, name))
        }
        names = _class_names(path, arrays)
        if missing := {"train", "test"} - splits.keys():
            first = min(missing)
            raise UserError(
                f"{path} has no {first} images: its arrays are {', '.join(arrays)}, and training "
                "needs x_train, y_train, x_test and y_test, or train_images, train_labels, "
                "test_images and test_labels"
            )
    largest = max(int(split.labels.max(initial=0)) for split in splits.values())
    classes = names or tuple(map(str, range(largest + 1)))
    for name, split in splits.items():
        check_range(f"{path} ({name})", split.labels, len(classes))
    counts = np.bincount(splits["train"].labels, minlength=len(classes))
    if empty := [classes[label] for label in np.flatnonzero(counts == 0)]:
        raise UserError(
            f"{path} has no training image of the class {empty[0]}: labels must be numbered from 0"
        )
    if len(classes) < 2:
        raise UserError(f"{path} has only one class, but at least 2 are needed")
    train, reserved = splits["train"], None
    if validation := splits.get("validation"):
        reserved = len(validation.labels)
        train = Split(*(np.concatenate(parts) for parts in zip(train, validation, strict=True)))
    return Arrays(classes, train, splits["test"], reserved)


def npz_labeled(path: Path, target: Target = DEFAULT_TARGET) -> Labeled:
    """Read the test images of an `.npz` file, or its arrays `images` and `labels`.

    Raises:
      UserError: the file or an array is missing, or the arrays do not match.
    """
    path = expand_home(path)
    with _open(_existing(path)) as arrays:
        keys = _find(arrays, "test") or (_PAIR if set(_PAIR) <= arrays.keys() else None)
        if keys is None:
            raise UserError(
                f"{path} has no labeled test images: its arrays are {', '.join(arrays)}, and "
                "x_test and y_test, test_images and test_labels, or images and labels are needed"
            )
        split, names = _split(path, arrays, keys, target), _class_names(path, arrays)
    if names:
        check_range(str(path), split.labels, len(names))
    return Labeled(f"npz:{path}", *split, names)


def npy_labeled(paths: str, target: Target = DEFAULT_TARGET) -> Labeled:
    """Read images and labels from two `.npy` files, whose paths are separated by a comma.

    Raises:
      UserError: a file is missing, or the arrays do not match.
    """
    parts = paths.split(",")
    pairs = [(",".join(parts[:i]), ",".join(parts[i:])) for i in range(1, len(parts))]
    if not pairs or not all(pairs[0]):
        raise UserError(f"npy:{paths} names no labels: give npy:IMAGES,LABELS")
    # A path may contain commas, so any comma may be the separator of the two paths.
    exists = [pair for pair in pairs if all(expand_home(path).exists() for path in pair)]
    images, labels = (expand_home(path) for path in (exists or pairs)[0])
    split = _convert(load_npy(images), load_npy(labels), str(images), str(labels), target)
    return Labeled(f"npy:{paths}", *split, None)


def load_npy(path: Path) -> np.ndarray:
    """Open an `.npy` file without reading its content into memory.

    Raises:
      UserError: the file is missing or damaged, or is not an `.npy` file.
    """
    try:
        return np.lib.format.open_memmap(_existing(path), mode="r")
    except (ValueError, EOFError) as error:
        raise UserError(f"{path} is not a NumPy file (.npy) of numbers, or is damaged") from error


def labels_of(array: np.ndarray, name: str) -> np.ndarray:
    """Return labels as int32 `[N]`. `array` has the shape `[N]` or `[N, 1]`.

    Raises:
      UserError: the array has another shape, or its values are not integers.
    """
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise UserError(
            f"the labels in {name} have the type {array.dtype} and the shape {list(array.shape)}: "
            "they must be integers of shape [N] or [N, 1]"
        )
    if len(array) and not (int(array.min()) >= 0 and int(array.max()) < 2**31):
        wrong = int(array.min()) if array.min() < 0 else int(array.max())
        raise UserError(f"the labels in {name} contain {wrong}: labels are numbered from 0")
    return array.astype(np.int32)


def check_range(name: str, labels: np.ndarray, classes: int) -> None:
    """Raise UserError if a label is not below the number of classes."""
    if len(labels) and (largest := int(labels.max())) >= classes:
        raise UserError(
            f"the labels in {name} contain {largest}, but there are only {classes} classes: labels "
            f"must be between 0 and {classes - 1}"
        )


def images_of(array: np.ndarray, name: str, target: Target = DEFAULT_TARGET) -> np.ndarray:
    """Return images as uint8 `[N, size, size, 3]`.

    Gray images become three equal channels. Float values from 0 to 1 are scaled to 0 to 255. Images
    of another size are resized like image files, with Pillow's antialiased bicubic filter.

    Args:
      array: `[N, H, W]`, `[N, H, W, 1]` or `[N, H, W, 3]`, uint8 or float.
      name: name of the array in error messages.
      target: size of the returned images, and the way to make them square.

    Raises:
      UserError: the array has another shape or type, or float values outside 0 to 1.
    """
    if array.ndim not in (3, 4) or (array.ndim == 4 and array.shape[3] not in (1, 3)):
        first = array.ndim == 4 and array.shape[1] in (1, 3)
        remedy = "; move the channels to the last axis" if first else ""
        raise UserError(
            f"the images in {name} have the shape {list(array.shape)}: [N, H, W], [N, H, W, 1] or "
            f"[N, H, W, 3] is needed{remedy}"
        )
    if not min(array.shape):
        raise UserError(f"{name} contains no images: its shape is {list(array.shape)}")
    if array.dtype.kind != "f" and array.dtype != np.uint8:
        raise UserError(
            f"the images in {name} have the type {array.dtype}: they must be uint8, or float "
            "between 0 and 1"
        )
    size = target.size
    images = np.zeros((len(array), size, size, 3), np.uint8)
    for start in range(0, len(array), _BLOCK):
        block = np.asarray(array[start : start + _BLOCK])
        if block.dtype.kind == "f":
            if not (block.min() >= 0 and block.max() <= 1):
                raise UserError(
                    f"the images in {name} have float values outside 0 to 1, such as "
                    f"{_outside(block):g}: divide them by 255 if they are between 0 and 255, or "
                    "save them as uint8"
                )
            block = np.round(block.astype(np.float32) * 255).astype(np.uint8)
        block = block.reshape(*block.shape[:3], -1)
        if block.shape[1:3] != (size, size):
            block = _resize(block, target)
        images[start : start + _BLOCK] = block
    return images


def _outside(block: np.ndarray) -> float:
    """Return the first pixel value that is not between 0 and 1."""
    return float(block[~((block >= 0) & (block <= 1))][0])


def _resize(images: np.ndarray, target: Target) -> np.ndarray:
    """Resize uint8 images `[N, H, W, 1 or 3]` with the same filter as image files."""
    from PIL import Image

    gray = images.shape[-1] == 1
    pictures = [Image.fromarray(image[..., 0] if gray else image) for image in images]
    resized = [np.asarray(fit(picture, target)) for picture in pictures]
    return np.stack(resized).reshape(len(images), target.size, target.size, -1)


def _existing(path: Path) -> Path:
    if not path.is_file():
        problem = "is a folder" if path.is_dir() else "does not exist"
        raise UserError(f"{path} {problem}: name a NumPy file")
    return path


@contextmanager
def _open(path: Path) -> Iterator[Mapping[str, Any]]:
    """Open an `.npz` file as a mapping from names to arrays."""
    try:
        file = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, zipfile.BadZipFile):
        file = None
    if not isinstance(file, np.lib.npyio.NpzFile):
        raise UserError(f"{path} is not a NumPy archive (.npz), or is damaged")
    with file:
        yield file


def _find(arrays: Mapping[str, Any], split: str) -> tuple[str, str] | None:
    """Return the names of the images and labels of a split, or None if they are missing."""
    return next((keys for keys in _KEYS[split] if set(keys) <= set(arrays)), None)


def _array(path: Path, arrays: Mapping[str, Any], key: str) -> np.ndarray:
    try:
        return arrays[key]
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(
            f"the array {key} in {path} cannot be read: it is damaged, or contains Python objects "
            "instead of numbers"
        ) from error


def _split(path: Path, arrays: Mapping[str, Any], keys: tuple[str, str], target: Target) -> Split:
    images, labels = keys
    pixels, numbers = (_array(path, arrays, key) for key in (images, labels))
    return _convert(pixels, numbers, f"{path} ({images})", f"{path} ({labels})", target)


def _convert(
    images: np.ndarray, labels: np.ndarray, images_name: str, labels_name: str, target: Target
) -> Split:
    numbers = labels_of(labels, labels_name)
    if len(images) != len(numbers):
        raise UserError(
            f"{images_name} has {counted(len(images), 'image')}, but {labels_name} has "
            f"{counted(len(numbers), 'label')}"
        )
    return Split(images_of(images, images_name, target), numbers)


def _class_names(path: Path, arrays: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Return the strings in the array `class_names`, or None if there is no such array."""
    if "class_names" not in arrays:
        return None
    names = _array(path, arrays, "class_names")
    if names.ndim != 1 or names.dtype.kind not in "US":
        raise UserError(
            f"class_names in {path} has the type {names.dtype} and the shape {list(names.shape)}: "
            "it must contain one string for each class"
        )
    classes = [n.decode(errors="replace") if isinstance(n, bytes) else str(n) for n in names]
    check_classes(classes, f"class_names in {path}")
    return tuple(classes)


def check_classes(classes: Sequence[str], name: str) -> None:
    """Raise UserError if a class name is empty or occurs twice. `name` says where they are."""
    if not all(classes):
        raise UserError(f"{name} contains an empty name: name every class")
    if repeated := [c for c, count in Counter(classes).items() if count > 1]:
        raise UserError(f"{name} contains {repeated[0]} twice: give every class its own name")
