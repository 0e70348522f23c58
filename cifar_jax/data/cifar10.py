"""Download, import and prepare CIFAR-10.

Training reads CIFAR-10 from a folder in the format of TensorFlow Datasets (tfds). This module
writes the folder from the official archive (https://www.cs.toronto.edu/~kriz/cifar.html). The
content is the same as if stock tfds had written it.
"""

import contextlib
import hashlib
import io
import pickle
import tarfile
import tempfile
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from cifar_jax.data import cache, tfds_folder
from cifar_jax.data.dataset import Arrays, Split
from cifar_jax.data.progress import notice, progress, reason
from cifar_jax.errors import UserError

CLASSES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)
VERSION = "3.0.2"  # The version that `tfds.load("cifar10")` reads.

# `content_digest` of the official CIFAR-10.
CONTENT = "a08b14bdab921f8e4cd76ae47fa3c7aca4085e2262da5609ac764dd6ad9b422d"

ARCHIVE_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
ARCHIVE_BYTES = 170_498_071
ARCHIVE_SHA256 = "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"
BATCHES_FOLDER = "cifar-10-batches-py"
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
# MD5 of each batch file, from torchvision/datasets/cifar.py.
BATCHES = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}


def folder(data_dir: Path) -> Path:
    """Return the folder of CIFAR-10 in `data_dir`, the folder of all tfds data sets."""
    return data_dir / "cifar10" / VERSION


def source(data_dir: Path) -> cache.Source:
    """Return CIFAR-10 as a `cache.Source`. Download and prepare the images if they are missing."""
    path = folder(data_dir)
    if not path.exists():
        # If several processes start at the same time, only one of them downloads CIFAR-10.
        with cache.lock(f"prepare-{cache.path_digest(path)}"):
            if not path.exists():
                notice(f"CIFAR-10 is not in {data_dir} yet: downloading it from {ARCHIVE_URL}")
                prepare(data_dir)
    return tfds_folder.source(path)


def prepare(data_dir: Path | None = None) -> Path:
    """Download the official archive, prepare CIFAR-10 in `data_dir`, and return the new folder.

    Raises:
      UserError: CIFAR-10 is already prepared, or the archive cannot be downloaded.
    """
    import pooch

    pooch.get_logger().setLevel("WARNING")
    with _new_folder(data_dir) as scratch:
        try:
            with progress("Downloading CIFAR-10", ARCHIVE_BYTES, is_bytes=True) as advance:
                bar = SimpleNamespace(update=advance, reset=lambda: None, close=lambda: None)
                archive = pooch.retrieve(
                    ARCHIVE_URL,
                    known_hash=f"sha256:{ARCHIVE_SHA256}",
                    path=scratch,
                    fname="cifar-10-python.tar.gz",
                    downloader=pooch.HTTPDownloader(bar, chunk_size=1 << 18, timeout=10),  # pyright: ignore
                )
        # requests raises OSError; pooch raises ValueError if the hash is wrong.
        except (OSError, ValueError) as error:
            raise UserError(
                f"CIFAR-10 cannot be downloaded from {ARCHIVE_URL} ({_first_cause(error)}). Try "
                "again with `cifar-jax data prepare`, or download that file yourself and run "
                "`cifar-jax data import PATH`. To train without CIFAR-10, add "
                "`--set data.dataset=digits`."
            ) from error
        return _write(_read_archive(Path(archive)), scratch)


def import_path(path: Path, data_dir: Path | None = None) -> Path:
    """Prepare CIFAR-10 in `data_dir` from a downloaded archive, and return the new folder.

    `path` is the official archive, the unpacked folder `cifar-10-batches-py`, or the parent of the
    unpacked folder.

    Raises:
      UserError: `path` is not the official CIFAR-10, or CIFAR-10 is already prepared.
    """
    path.stat()  # If `path` is missing, raise before anything is created.
    with _new_folder(data_dir) as scratch:
        arrays = _read_folder(path) if path.is_dir() else _read_archive(path)
        return _write(arrays, scratch)


def _read_archive(path: Path) -> Arrays:
    with path.open("rb") as file:
        start = file.read(8)
        if form := next((f for magic, f in _OTHER_FORMS.items() if start.startswith(magic)), None):
            raise _not_official(path, f"it is a {form}")
        file.seek(0)
        if hashlib.file_digest(file, "sha256").hexdigest() != ARCHIVE_SHA256:
            size = path.stat().st_size
            problem = "its SHA-256 differs"
            if not size:
                problem = "it is empty"
            elif name := _first_name(path):
                problem += f", and its first file is {name}"
            elif size != ARCHIVE_BYTES:
                problem += f", and it has {size:,} bytes instead of {ARCHIVE_BYTES:,}"
            raise _not_official(path, problem)
    with tarfile.open(path) as archive:
        files = {name: archive.extractfile(f"{BATCHES_FOLDER}/{name}") for name in BATCHES}
        return _decode(path, {name: file.read() for name, file in files.items() if file})


def _first_name(path: Path) -> str | None:
    """Return the name of the first file in a tar archive if it is not an archive of CIFAR-10."""
    try:
        with tarfile.open(path) as archive:
            name = next((member.name for member in archive if member.isfile()), "none")
    except (OSError, EOFError, tarfile.TarError, zlib.error):
        return None
    return None if name.startswith(f"{BATCHES_FOLDER}/") else name


def _read_folder(path: Path) -> Arrays:
    nested = path / BATCHES_FOLDER
    path = nested if nested.is_dir() else path
    if missing := [name for name in BATCHES if not (path / name).is_file()]:
        names = ", ".join(sorted(entry.name for entry in path.iterdir())[:5])
        content = f"it contains {names}" if names else "it is empty"
        raise _not_official(path, f"{missing[0]} is missing; {content}")
    return _decode(path, {name: (path / name).read_bytes() for name in BATCHES})


def _decode(path: Path, batches: dict[str, bytes]) -> Arrays:
    """Decode the batch files. Raise UserError if a file is not an official file of CIFAR-10."""
    splits = {}
    for name, content in batches.items():
        # Unpickling can run code, so only official files are unpickled.
        if hashlib.md5(content, usedforsecurity=False).hexdigest() != BATCHES[name]:
            raise _not_official(path, f"the MD5 of {name} differs")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # NumPy warns about arrays that Python 2 pickled.
            batch = pickle.loads(content, encoding="bytes")
        images = batch[b"data"].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        splits[name] = Split(images, np.array(batch[b"labels"], np.int32))
    test = splits.pop("test_batch")
    train = Split(*(np.concatenate(parts) for parts in zip(*splits.values(), strict=True)))
    return Arrays(CLASSES, train, test)


def _not_official(path: Path, problem: str) -> UserError:
    return UserError(
        f"{path} is not the official CIFAR-10 ({problem}). Give the archive {ARCHIVE_URL}, or "
        f"its unpacked folder {BATCHES_FOLDER}. To train on your own images, use "
        "`--set data.dataset=folder:PATH`."
    )


def _first_cause(error: BaseException) -> str:
    """Return the message of the first error in a chain of causes: the most specific message."""
    while cause := error.__cause__ or error.__context__:
        error = cause
    return reason(error)


@contextlib.contextmanager
def _new_folder(data_dir: Path | None) -> Iterator[Path]:
    """Yield a temporary folder in `data_dir`, which is deleted at the end, even after an error.

    Raises:
      UserError: CIFAR-10 is already prepared. An existing folder is never overwritten.
    """
    data_dir = data_dir or tfds_folder.default_data_dir()
    path = folder(data_dir)
    if path.exists():
        raise UserError(
            f"CIFAR-10 is already prepared in {path}: move that folder away to prepare it again, "
            "or set TFDS_DATA_DIR to another folder"
        )
    data_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=data_dir, prefix=".cifar10-") as scratch:
        yield Path(scratch)


def _write(arrays: Arrays, scratch: Path) -> Path:
    """Write a tfds folder in `scratch`, move it to the parent of `scratch`, and return its path."""
    path = folder(scratch.parent)
    with progress(f"Writing {path}", len(arrays.train.labels) + len(arrays.test.labels)) as advance:
        try:
            _build(arrays, scratch, advance)
        # array_record raises RuntimeError, for example if the disk is full.
        except RuntimeError as error:
            raise UserError(f"{path} cannot be written: {reason(error)}") from error
    path.parent.mkdir(exist_ok=True)
    try:
        folder(scratch).rename(path)
    except OSError:
        if not path.exists():  # Another machine may have created the folder in the meantime.
            raise
    return path


def _build(arrays: Arrays, data_dir: Path, advance: Callable[[int], None]) -> None:
    """Write CIFAR-10 with the builder class of stock tfds, but without TensorFlow.

    Records have the same order and ids as in stock tfds. A hash of the index determines the order.
    """
    import tensorflow_datasets as tfds
    from PIL import Image
    from tensorflow_datasets.core import registered
    from tensorflow_datasets.image_classification import cifar

    with registered.skip_registration():

        class Builder(cifar.Cifar10):
            """The CIFAR-10 builder of stock tfds, for images in memory.

            It yields PNG files, because tfds would encode arrays with TensorFlow.
            """

            name = "cifar10"
            __module__ = cifar.Cifar10.__module__  # tfds writes the module's name to the folder.
            url_infos: Any = {}  # noqa: RUF012 - Nothing is downloaded, so there are no checksums.

            def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
                features: Any = self.info.features
                features["label"].names = list(arrays.classes)
                return {
                    "train": self._examples("train", arrays.train),
                    "test": self._examples("test", arrays.test),
                }

            def _examples(self, name: str, split: Split) -> Iterator[tuple[int, dict[str, Any]]]:
                for index, (image, label) in enumerate(zip(*split, strict=True)):
                    png = io.BytesIO()
                    Image.fromarray(image).save(png, "png")
                    png.seek(0)
                    yield index, {"id": f"{name}_{index:05d}", "image": png, "label": int(label)}
                    advance(1)

    tfds.disable_progress_bar()
    builder: Any = Builder(data_dir=data_dir, file_format="array_record")
    # tfds prints to standard output, which is reserved for results.
    with contextlib.redirect_stdout(io.StringIO()):
        builder.download_and_prepare(download_dir=data_dir / "downloads")
