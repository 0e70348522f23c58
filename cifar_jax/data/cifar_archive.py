"""Read the official archives of CIFAR-10 and CIFAR-100.

The archives are at https://www.cs.toronto.edu/~kriz/cifar.html.
"""

import hashlib
import pickle
import tarfile
import warnings
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cifar_jax.errors import UserError

_OTHER_FORMS = {
    b"PK\x03\x04": "zip or npz archive",
    b"PAR1": "Parquet file",
    b"\x93NUMPY": "NumPy file",
    b"\x89HDF": "HDF5 file",
    b"7z\xbc\xaf": "7z archive",
    b"Rar!": "RAR archive",
    b"MATLAB": "MATLAB file",
    b"ARROW1": "file of Apache Arrow",
}


class Archive(NamedTuple):
    """An official archive, and the tfds data set that is prepared from it.

    Attributes:
      name: name of the data set, which is also its name in tfds.
      title: name of the data set in messages.
      builder: name of the builder class in `tensorflow_datasets.image_classification.cifar`.
      version: version of the data set in tfds.
      url: address of the archive.
      size: size of the archive in bytes.
      checksum: hash function and published checksum of the archive, as in `md5:eb9058c3`.
      folder: name of the folder in the archive.
      files: MD5 of each file in the folder.
      test: name of the file with the test images. The other files with images are for training.
      labels: maps the name of each label in tfds to the key of this label in the files.
      classes: maps each label name in tfds to the class names. Empty if the file `meta` has them.
    """

    name: str
    title: str
    builder: str
    version: str
    url: str
    size: int
    checksum: str
    folder: str
    files: Mapping[str, str]
    test: str
    labels: Mapping[str, str]
    classes: Mapping[str, tuple[str, ...]]


class Examples(NamedTuple):
    """The images of a split, uint8 `[N, 32, 32, 3]`, and arrays of labels, int32 `[N]`, by name."""

    images: np.ndarray
    labels: dict[str, np.ndarray]


class Content(NamedTuple):
    """The content of an archive: class names for each label, and the examples of both splits."""

    classes: Mapping[str, tuple[str, ...]]
    train: Examples
    test: Examples


def is_similar(archive: Archive, path: Path) -> bool:
    """Return whether the name, size or content of `path` resembles the archive or its folder."""
    if path.is_dir():
        names = {entry.name for entry in path.iterdir()}
        return archive.folder in names or archive.files.keys() <= names
    return path.name == Path(archive.url).name or path.stat().st_size == archive.size


def read_archive(archive: Archive, path: Path) -> Content:
    """Read an archive. Raise UserError if it is not the official archive."""
    algorithm, _, checksum = archive.checksum.partition(":")
    with path.open("rb") as file:
        start = file.read(8)
        if form := next((f for magic, f in _OTHER_FORMS.items() if start.startswith(magic)), None):
            raise _not_official(archive, path, f"it is a {form}")
        file.seek(0)
        if hashlib.file_digest(file, algorithm).hexdigest() != checksum:
            size = path.stat().st_size
            problem = f"its {algorithm.upper().replace('SHA', 'SHA-')} differs"
            if not size:
                problem = "it is empty"
            elif name := _first_name(archive, path):
                problem += f", and its first file is {name}"
            elif size != archive.size:
                problem += f", and it has {size:,} bytes instead of {archive.size:,}"
            raise _not_official(archive, path, problem)
    with tarfile.open(path) as tar:
        files = {name: tar.extractfile(f"{archive.folder}/{name}") for name in archive.files}
        return _decode(archive, path, {name: file.read() for name, file in files.items() if file})


def _first_name(archive: Archive, path: Path) -> str | None:
    """Return the name of the first file in a tar archive, for an error message.

    The result is None if the first file is in the folder of the official archive, or if the archive
    cannot be read. If the archive has no file, the result is `none`.
    """
    try:
        with tarfile.open(path) as tar:
            name = next((member.name for member in tar if member.isfile()), "none")
    except (OSError, EOFError, tarfile.TarError, zlib.error):
        return None
    return None if name.startswith(f"{archive.folder}/") else name


def read_folder(archive: Archive, path: Path) -> Content:
    """Read the unpacked folder of an archive, or the parent of the unpacked folder.

    Raises:
      UserError: a file is missing, or is not an official file.
    """
    nested = path / archive.folder
    path = nested if nested.is_dir() else path
    if missing := [name for name in archive.files if not (path / name).is_file()]:
        names = ", ".join(sorted(entry.name for entry in path.iterdir())[:5])
        content = f"it contains {names}" if names else "it is empty"
        raise _not_official(archive, path, f"{missing[0]} is missing; {content}")
    return _decode(archive, path, {name: (path / name).read_bytes() for name in archive.files})


def _decode(archive: Archive, path: Path, files: dict[str, bytes]) -> Content:
    """Decode the files of an archive. Raise UserError if a file is not an official file."""
    decoded = {}
    for name, content in files.items():
        # Check the MD5 first: a pickle file can run code, so only official files are unpickled.
        if hashlib.md5(content, usedforsecurity=False).hexdigest() != archive.files[name]:
            raise _not_official(archive, path, f"the MD5 of {name} differs")
        with warnings.catch_warnings():
            # Hide NumPy's warning about pickle files from Python 2.
            warnings.simplefilter("ignore")
            decoded[name] = pickle.loads(content, encoding="bytes")
    classes = archive.classes
    if meta := decoded.pop("meta", None):
        classes = {
            label: tuple(name.decode() for name in meta[f"{key[:-1]}_names".encode()])
            for label, key in archive.labels.items()
        }
    test = _examples(archive, [decoded.pop(archive.test)])
    return Content(classes, _examples(archive, list(decoded.values())), test)


def _examples(archive: Archive, batches: list[dict[bytes, Any]]) -> Examples:
    images = np.concatenate([batch[b"data"] for batch in batches])
    labels = {
        label: np.concatenate([np.array(batch[key.encode()], np.int32) for batch in batches])
        for label, key in archive.labels.items()
    }
    return Examples(images.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), labels)


def _not_official(archive: Archive, path: Path, problem: str) -> UserError:
    return UserError(
        f"{path} is not the official {archive.title}: {problem}. Give the archive {archive.url}, "
        f"or its unpacked folder {archive.folder}. To train on your own images, use "
        "`--set data.dataset=folder:PATH`."
    )
