"""Download, import and prepare CIFAR-10 and CIFAR-100.

Training reads both data sets from folders in the format of TensorFlow Datasets (tfds). This module
writes such a folder from an official archive. The package tensorflow-datasets can read it, too.
"""

import contextlib
import io
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from cifar_jax.data import cache, tfds_folder
from cifar_jax.data.cifar_archive import Archive, Content, Examples, read_archive, read_folder
from cifar_jax.data.progress import notice, progress, reason
from cifar_jax.errors import UserError


def folder(archive: Archive, data_dir: Path) -> Path:
    """Return the folder of the data set in `data_dir`, the folder of all tfds data sets."""
    return data_dir / archive.name / archive.version


def source(archive: Archive, data_dir: Path) -> cache.Source:
    """Return the data set as a `cache.Source`. Download and prepare missing images."""
    path = folder(archive, data_dir)
    if not path.exists():
        # If several processes start at the same time, only one of them downloads the archive.
        with cache.lock(f"prepare-{cache.path_digest(path)}"):
            if not path.exists():
                notice(
                    f"{archive.title} is not in {data_dir} yet: downloading it from {archive.url}"
                )
                prepare(archive, data_dir)
    return tfds_folder.source(path)


def prepare(archive: Archive, data_dir: Path | None = None) -> Path:
    """Download the archive, prepare the data set in `data_dir`, and return the new folder.

    Raises:
      UserError: the data set is already prepared, or the archive cannot be downloaded.
    """
    import pooch

    pooch.get_logger().setLevel("WARNING")
    with _new_folder(archive, data_dir) as scratch:
        try:
            with progress(f"Downloading {archive.title}", archive.size, is_bytes=True) as advance:
                bar = SimpleNamespace(update=advance, reset=lambda: None, close=lambda: None)
                file = pooch.retrieve(
                    archive.url,
                    known_hash=archive.checksum,
                    path=scratch,
                    fname="archive.tar.gz",
                    downloader=pooch.HTTPDownloader(bar, chunk_size=1 << 18, timeout=10),  # pyright: ignore
                )
        # Requests raises OSError. Pooch raises ValueError if the checksum is wrong.
        except (OSError, ValueError) as error:
            raise UserError(
                f"{archive.title} cannot be downloaded from {archive.url}: {_first_cause(error)}. "
                f"Try again with `cifar-jax data prepare{_argument(archive)}`, or download that "
                "file yourself and run `cifar-jax data import PATH`. To train without "
                f"{archive.title}, add `--set data.dataset=digits`."
            ) from error
        return _write(archive, read_archive(archive, Path(file)), scratch)


def import_path(archive: Archive, path: Path, data_dir: Path | None = None) -> Path:
    """Prepare the data set in `data_dir` from a downloaded archive, and return the new folder.

    `path` is the archive, the unpacked folder, or the parent of the unpacked folder.

    Raises:
      UserError: `path` is not the official archive, or the data set is already prepared.
    """
    with _new_folder(archive, data_dir) as scratch:
        read = read_folder if path.is_dir() else read_archive
        return _write(archive, read(archive, path), scratch)


def _argument(archive: Archive) -> str:
    """Return the argument that names the data set in the command `cifar-jax data prepare`.

    The result begins with a space. It is empty for CIFAR-10, the default of the command.
    """
    return "" if archive.name == "cifar10" else f" {archive.name}"


def _first_cause(error: BaseException) -> str:
    """Return the message of the error that caused `error`, directly or through other errors.

    The message of the first error is the most specific.
    """
    while cause := error.__cause__ or error.__context__:
        error = cause
    return reason(error)


@contextlib.contextmanager
def _new_folder(archive: Archive, data_dir: Path | None) -> Iterator[Path]:
    """Yield a temporary folder in `data_dir`. It is deleted at the end, even after an error.

    Raises:
      UserError: the data set is already prepared. An existing folder is never overwritten.
    """
    data_dir = data_dir or tfds_folder.default_data_dir()
    path = folder(archive, data_dir)
    if path.exists():
        raise UserError(
            f"{archive.title} is already prepared in {path}: move that folder away to prepare the "
            "data set again, or set TFDS_DATA_DIR to another folder"
        )
    data_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=data_dir, prefix=f".{archive.name}-") as scratch:
        yield Path(scratch)


def _write(archive: Archive, content: Content, scratch: Path) -> Path:
    """Write the tfds folder of a data set, and return its path.

    The folder is written in `scratch`, and then moved to the parent of `scratch`.
    """
    path = folder(archive, scratch.parent)
    total = len(content.train.images) + len(content.test.images)
    with progress(f"Writing {path}", total) as advance:
        try:
            _build(archive, content, scratch, advance)
        # array_record raises RuntimeError, for example if the disk is full.
        except RuntimeError as error:
            raise UserError(f"{path} cannot be written: {reason(error)}") from error
    path.parent.mkdir(exist_ok=True)
    try:
        folder(archive, scratch).rename(path)
    except OSError:
        if not path.exists():  # Use a folder that another machine has created.
            raise
    return path


def _build(
    archive: Archive, content: Content, data_dir: Path, advance: Callable[[int], None]
) -> None:
    """Write the data set with a builder class of tensorflow-datasets, but without TensorFlow.

    The order and the ids of the images are the same as in `tfds.load`. tfds orders images by a hash
    of their index.
    """
    import tensorflow_datasets as tfds
    from PIL import Image
    from tensorflow_datasets.core import registered
    from tensorflow_datasets.image_classification import cifar

    stock: Any = getattr(cifar, archive.builder)
    with registered.skip_registration():

        class Builder(stock):
            """A builder class of tensorflow-datasets, changed to take images from memory.

            It yields PNG files, because tfds would encode arrays with TensorFlow.
            """

            name = archive.name
            # tfds stores the name of this module with the data set, so use the module of tfds.
            __module__ = stock.__module__
            # There are no checksums, because nothing is downloaded.
            url_infos: Any = {}  # noqa: RUF012

            def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
                for label, names in content.classes.items():
                    self.info.features[label].names = list(names)
                return {
                    "train": self._examples("train", content.train),
                    "test": self._examples("test", content.test),
                }

            def _examples(
                self, name: str, examples: Examples
            ) -> Iterator[tuple[int, dict[str, Any]]]:
                for index, image in enumerate(examples.images):
                    png = io.BytesIO()
                    Image.fromarray(image).save(png, "png")
                    png.seek(0)
                    labels = {key: int(values[index]) for key, values in examples.labels.items()}
                    yield index, {"id": f"{name}_{index:05d}", "image": png, **labels}
                    advance(1)

    tfds.disable_progress_bar()
    builder: Any = Builder(data_dir=data_dir, file_format="array_record")
    # Discard the output of tfds, because standard output is reserved for results.
    with contextlib.redirect_stdout(io.StringIO()):
        builder.download_and_prepare(download_dir=data_dir / "downloads")
