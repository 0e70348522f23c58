"""Load data sets as NumPy arrays, and augment batches of images on the device.

The packages tfds, Pillow, pooch and rich are slow to import. They are imported only inside the
functions that use them.
"""

from pathlib import Path

from cifar_jax.data import (
    cache,
    cifar10,
    cifar100,
    cifar_archive,
    cifar_prepare,
    image_folder,
    layout,
    sources,
)
from cifar_jax.data.dataset import Dataset, Labeled, Split, split_validation
from cifar_jax.data.images import DEFAULT_TARGET, Target
from cifar_jax.data.sources import SOURCES
from cifar_jax.data.status import status
from cifar_jax.data.tfds_folder import default_data_dir
from cifar_jax.errors import counted
from cifar_jax.files import expand_home

__all__ = [
    "DEFAULT_TARGET",
    "SOURCES",
    "Dataset",
    "Labeled",
    "Split",
    "Target",
    "check_workdir",
    "default_data_dir",
    "import_path",
    "is_local",
    "load",
    "load_labeled",
    "prepare",
    "split_validation",
    "status",
]

_ARCHIVES = {module.ARCHIVE.name: module for module in (cifar10, cifar100)}


def load(
    name: str,
    *,
    data_dir: Path | None = None,
    skip_bad_images: bool = False,
    target: Target = DEFAULT_TARGET,
) -> Dataset:
    """Load a data set by name.

    The first call decodes the images and stores them in a cache on disk. Later calls read the
    cache.

    Args:
      name: `cifar10`, `cifar100`, `digits`, `folder:PATH` for a folder of images, `tfds:NAME` for a
        data set that tfds has prepared, or `npz:FILE` for a NumPy archive.
      data_dir: the folder in which tfds stores prepared data sets. The default is
        `$TFDS_DATA_DIR`, or `~/tensorflow_datasets` if the variable is not set.
      skip_bad_images: whether to leave out the unreadable images of a folder.
      target: size of the returned images, and the way to make them square.

    Raises:
      UserError: the name is unknown, images are missing or damaged, a color channel has the same
        value in all training images, or the images of the data set cannot have the size `target`.
    """
    entry, request = sources.find(name, data_dir, skip_bad_images, target)
    assert entry.source
    dataset = cache.load(entry.source(request))
    notes = list(dataset.notes)
    if name.startswith("folder:"):
        notes += image_folder.remarks(dataset)
    if name.startswith("npz:") and dataset.validation_images is not None:
        notes.append("validation images: those of the file (data.validation is not used)")
    if dataset.white:
        notes.append(f"16-bit images: 0 to {dataset.white} became 0 to 255")
    if dataset.skipped:
        skipped = counted(len(dataset.skipped), "image")
        notes.append(f"skipped {skipped} that cannot be read")
    return dataset._replace(official=dataset.content == cifar10.CONTENT, notes=tuple(notes))


def check_workdir(name: str, workdir: Path) -> None:
    """Raise UserError if a run folder would be inside a class folder of the data set `name`."""
    kind, _, path = name.partition(":")
    if kind == "folder":
        layout.check_workdir(expand_home(path).resolve(), workdir.resolve())


def load_labeled(
    name: str,
    *,
    data_dir: Path | None = None,
    target: Target = DEFAULT_TARGET,
    white: int | None = None,
) -> Labeled:
    """Load labeled images for evaluation.

    Args:
      name: a name that `load` accepts, or `npy:IMAGES,LABELS`. If the data set has test images,
        only these are loaded. Otherwise all images are loaded.
      data_dir: the folder in which tfds stores prepared data sets, as for `load`.
      target: size of the returned images, and the way to make them square.
      white: the 16-bit value that becomes 255 in images of a folder. None: 65535.

    Raises:
      UserError: the name is unknown, images are missing or damaged, or the labels do not match.
    """
    entry, request = sources.find(name, data_dir, target=target, others="cifar10-c:FOLDER")
    if entry.labeled:
        return entry.labeled(request._replace(white=white))
    dataset = load(name, data_dir=data_dir)  # The size is right; a square image needs no crop.
    return Labeled(name, *dataset.test, dataset.classes)


def is_local(name: str) -> bool:
    """Return whether a data set can be loaded without a download. Loading may still fail."""
    archive = _ARCHIVES.get(name)
    return not archive or cifar_prepare.folder(archive.ARCHIVE, default_data_dir()).exists()


def prepare(name: str = "cifar10", data_dir: Path | None = None) -> Path:
    """Download CIFAR-10 or CIFAR-100, prepare it in `data_dir`, and return the new folder.

    Raises:
      UserError: the data set is already prepared, or the archive cannot be downloaded.
    """
    return cifar_prepare.prepare(_ARCHIVES[name].ARCHIVE, data_dir)


def import_path(path: Path, data_dir: Path | None = None) -> Path:
    """Prepare CIFAR-10 or CIFAR-100 from a downloaded archive, and return the new folder.

    Args:
      path: the official archive, its unpacked folder, or the parent of the unpacked folder.
      data_dir: the folder in which tfds stores prepared data sets, as for `load`.

    Raises:
      UserError: `path` is not an official archive, or the data set is already prepared.
    """
    path.stat()  # Raise FileNotFoundError for a missing path before any folder is created.
    is_100 = cifar_archive.is_similar(cifar100.ARCHIVE, path)
    module = cifar100 if is_100 and not cifar_archive.is_similar(cifar10.ARCHIVE, path) else cifar10
    return cifar_prepare.import_path(module.ARCHIVE, path, data_dir)
