"""Writing a tfds folder in ArrayRecord form without TensorFlow."""

import contextlib
import io
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from cifar_jax.data.cifar10.facts import folder
from cifar_jax.data.dataset import Decoded, Split
from cifar_jax.data.progress import progress, reason
from cifar_jax.errors import UserError


def check_target(data_dir: Path) -> None:
    """Raise UserError if CIFAR-10 is prepared already, or ``data_dir`` cannot be written to.

    Nothing is ever overwritten, and nobody should wait for a download that finds no place.
    """
    path = folder(data_dir)
    nearest = next(p for p in (data_dir, *data_dir.absolute().parents) if os.path.lexists(p))
    try:
        str(path).encode()  # array_record takes no other names
        path.lstat()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{data_dir} cannot be used: its name is not UTF-8; set TFDS_DATA_DIR to another folder"
        ) from error
    except FileNotFoundError:
        if not os.access(nearest, os.W_OK | os.X_OK):
            raise UserError(
                f"{data_dir} cannot be written to: set TFDS_DATA_DIR to another folder"
            ) from None
    except NotADirectoryError as error:
        raise UserError(
            f"{nearest} is a file, not a folder: set TFDS_DATA_DIR to a folder"
        ) from error
    except OSError as error:
        raise UserError(
            f"{data_dir} cannot be used: {error.strerror}; set TFDS_DATA_DIR to another folder"
        ) from error
    else:
        raise UserError(
            f"CIFAR-10 is already prepared in {path} and is left as it is: move that folder away "
            "to prepare it anew, or set TFDS_DATA_DIR to another folder"
        )


def write_cifar10(decoded: Decoded, data_dir: Path) -> Path:
    """Write ``data_dir/cifar10/VERSION`` as stock tfds would, and return it.

    Records are in stock tfds's order (by hash of their index) with its ids (``train_00000`` …). The
    folder appears whole, by rename. Raises UserError if it is there already or cannot be written.
    """
    check_target(data_dir)
    path = folder(data_dir)
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=data_dir, prefix=".cifar10-") as scratch:
            total = len(decoded.train.labels) + len(decoded.test.labels)
            with progress(f"Writing {path}", total) as advance:
                _build(decoded, Path(scratch), advance)
            path.parent.mkdir(exist_ok=True)
            check_target(data_dir)
            folder(Path(scratch)).rename(path)
    except (OSError, RuntimeError) as error:  # RuntimeError: array_record's, of a full disk
        raise UserError(f"{path} cannot be written: {_why(error)}") from error
    return path


def _why(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if "disk space" in str(error):  # tfds's own words, beside sizes that it does not know
        return "No space left on device"
    told = re.search(r"failed: ([^;:]+);", str(error))
    return told[1] if told else reason(error)


def _build(decoded: Decoded, data_dir: Path, advance: Callable[[int], None]) -> None:
    import tensorflow_datasets as tfds
    from PIL import Image
    from tensorflow_datasets.core import registered
    from tensorflow_datasets.image_classification import cifar

    with registered.skip_registration():

        class Builder(cifar.Cifar10):
            """Stock tfds's builder, given images instead of an archive that it would download.

            It yields PNG files, because tfds encodes arrays with TensorFlow.
            """

            name = "cifar10"
            __module__ = cifar.Cifar10.__module__  # tfds records it
            url_infos: Any = {}  # noqa: RUF012 - nothing is downloaded, so no checksums are sought

            def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
                features: Any = self.info.features
                features["label"].names = list(decoded.classes)
                return {
                    "train": self._examples("train", decoded.train),
                    "test": self._examples("test", decoded.test),
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
    # tfds announces its work on standard output, which is for results.
    with contextlib.redirect_stdout(io.StringIO()):
        builder.download_and_prepare(download_dir=data_dir / "downloads")
