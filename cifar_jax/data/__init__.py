"""Load data sets as NumPy arrays, and augment batches of images on the device.

The packages tfds, Pillow, pooch and rich are slow to import. Only the functions that use them
import them.
"""

from collections.abc import Callable
from pathlib import Path

from cifar_jax.data import cache, cifar10, digits, image_folder, layout
from cifar_jax.data.cifar10 import import_path, prepare
from cifar_jax.data.dataset import Dataset, Split, split_validation
from cifar_jax.data.status import status
from cifar_jax.data.tfds_folder import default_data_dir
from cifar_jax.errors import UserError, counted, nearest
from cifar_jax.files import local_path

__all__ = [
    "DATASETS",
    "Dataset",
    "Split",
    "check_workdir",
    "default_data_dir",
    "import_path",
    "is_local",
    "load",
    "prepare",
    "split_validation",
    "status",
]

# To add a data set, add its name and a function. The function takes the folder of prepared data
# sets, or None for the default folder, and returns a `cache.Source`.
DATASETS: dict[str, Callable[[Path | None], cache.Source]] = {
    "cifar10": lambda data_dir: cifar10.source(data_dir or default_data_dir()),
    "digits": lambda data_dir: digits.source(),
}


def load(name: str, *, data_dir: Path | None = None, skip_bad_images: bool = False) -> Dataset:
    """Load a data set by name.

    The first call decodes the images and stores them in a cache on disk. Later calls read the
    cache.

    Args:
      name: one of `DATASETS`, or `folder:PATH` for a folder of images (see `image_folder`).
      data_dir: the folder in which tfds stores prepared data sets. The default is
        `$TFDS_DATA_DIR`, or `~/tensorflow_datasets` if the variable is not set.
      skip_bad_images: whether to leave out the unreadable images of a folder.

    Raises:
      UserError: the name is unknown, images are missing or damaged, or a color channel has the same
        value in all training images.
    """
    dataset = cache.load(_source(name, data_dir, skip_bad_images))
    notes = list(dataset.notes)
    if name.startswith("folder:"):
        notes += image_folder.remarks(dataset)
    if dataset.white:
        notes.append(f"16-bit images: 0 to {dataset.white} became 0 to 255")
    if dataset.skipped:
        skipped = counted(len(dataset.skipped), "image")
        notes.append(f"skipped {skipped} that cannot be read")
    return dataset._replace(official=dataset.content == cifar10.CONTENT, notes=tuple(notes))


def check_workdir(name: str, workdir: Path) -> None:
    """Raise UserError if a run folder would be inside a class of the data set `name`."""
    kind, _, path = name.partition(":")
    if kind == "folder":
        layout.check_workdir(Path(path).expanduser().resolve(), workdir.resolve())


def is_local(name: str) -> bool:
    """Return whether `load` needs no download for this data set. It may still raise UserError."""
    return name != "cifar10" or cifar10.folder(default_data_dir()).exists()


def _source(name: str, data_dir: Path | None, skip_bad_images: bool) -> cache.Source:
    if name in DATASETS:
        return DATASETS[name](data_dir)
    kind, _, path = name.partition(":")
    if kind == "folder" and path:
        folder = local_path(path, "data.dataset")
        return image_folder.source(folder, skip_bad_images=skip_bad_images)
    if "://" in name:
        local_path(name, "data.dataset")
    hint = f"; did you mean folder:{path or name}?" if "/" in name else nearest(name, DATASETS)
    raise UserError(
        f"there is no data set {name!r}{hint or '.'} Choose {', '.join(DATASETS)}, or folder:PATH "
        "for your own images."
    )
