"""Preparing CIFAR-10 offline from what people have at hand."""

import hashlib
from pathlib import Path
from typing import NamedTuple

from cifar_jax.data import tfds_folder
from cifar_jax.data.cifar10 import archives, facts, image_tree, tfds_write
from cifar_jax.data.dataset import Decoded
from cifar_jax.errors import UserError

_ACCEPTED = (
    "cifar-10-python.tar.gz or cifar-10-binary.tar.gz (packed or unpacked), "
    "or a folder with train/CLASS/*.png|jpg and test/CLASS/*.png|jpg"
)


class ImportResult(NamedTuple):
    """What was imported.

    ``recognized`` names the format; ``official`` says what showed that these are the official
    images, and is None where nothing did; ``counts`` are images a split; ``remarks`` are worth
    printing, one line each; ``path`` is the folder that was written.
    """

    recognized: str
    official: str | None
    counts: dict[str, int]
    remarks: tuple[str, ...]
    path: Path


def import_path(path: Path, data_dir: Path | None = None) -> ImportResult:
    """Prepare CIFAR-10 from an archive, its unpacked folder, or an image folder.

    ``data_dir`` is as for `cifar_jax.data.load`. Nothing is written unless all of ``path`` was
    readable. Raises UserError for anything else, and if CIFAR-10 is prepared there already.
    """
    data_dir = data_dir or tfds_folder.default_data_dir()
    tfds_write.check_target(data_dir)
    recognized, official, decoded, remarks = _read(path)
    counts = {"train": len(decoded.train.labels), "test": len(decoded.test.labels)}
    if counts != facts.COUNTS:
        remarks = (
            *remarks,
            f"{counts['train']:,} training and {counts['test']:,} test images, "
            f"where CIFAR-10 has {facts.COUNTS['train']:,} and {facts.COUNTS['test']:,}",
        )
    written = tfds_write.write_cifar10(decoded, data_dir)
    return ImportResult(recognized, official, counts, remarks, written)


def _read(path: Path) -> tuple[str, str | None, Decoded, tuple[str, ...]]:
    """(what the path is, why it is official, its images, remarks)."""
    try:
        if not path.exists():
            raise UserError(f"{path} does not exist: give {_ACCEPTED}")
        if path.is_file():
            archive = archives.read_archive(path)
            return f"{archive.kind} archive", _official(archive, path), archive.images, ()
        if batches := archives.batches_folder(path):
            archive = archives.read_folder(batches)
            return f"unpacked {archive.kind} archive", _official(archive), archive.images, ()
        if image_tree.is_image_tree(path):
            images, remarks = image_tree.read(path, facts.CLASSES)
            return "image folder", None, images, remarks
    except OSError as error:
        raise UserError(f"{error.filename or path} cannot be read: {error.strerror}") from error
    raise UserError(f"{path} is not a form of CIFAR-10 that can be imported: give {_ACCEPTED}")


def _official(archive: archives.Archive, packed: Path | None = None) -> str | None:
    if packed:
        with packed.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest in facts.OFFICIAL_ARCHIVES:
            return f"its SHA-256 is that of the official {facts.OFFICIAL_ARCHIVES[digest]}"
    return "the MD5 of every batch is that of the official one" if archive.is_official else None
