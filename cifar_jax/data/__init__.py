"""Load data sets as NumPy arrays, and augment batches of images on the device.

The packages tfds, Pillow, pooch and rich are slow to import. Only the functions that use them
import them.
"""

from collections.abc import Callable
from pathlib import Path

from cifar_jax.data import cache, cifar10, digits, image_folder, layout
from cifar_jax.data.cifar10 import import_path, prepare
from cifar_jax.data.dataset import Dataset, Split, split_validation
from cifar_jax.data.images import DEFAULT_TARGET, Target
from cifar_jax.data.status import status
from cifar_jax.data.tfds_folder import default_data_dir
from cifar_jax.errors import UserError, counted, nearest
from cifar_jax.files import local_path

__all__ = [
    "DATASETS",
    "Dataset",
    "Split",
    "Target",
    "check_workdir",
    "default_data_dir",
    "import_path",
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
      name: one of `DATASETS`, or `folder:PATH` for a folder of images (see `image_folder`).
      data_dir: the folder in which tfds stores prepared data sets. The default is
        `$TFDS_DATA_DIR`, or `~/tensorflow_datasets` if the variable is not set.
      skip_bad_images: whether to leave out the unreadable images of a folder.
      target: to which size, and how, the images of a folder are resized.

    Raises:
      UserError: the name is unknown, images are missing or damaged, a color channel has the same
        value in all training images, or the data set has another image size than `target`.
    """
    dataset = cache.load(_source(name, data_dir, skip_bad_images, target))
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


def _source(
    name: str, data_dir: Path | None, skip_bad_images: bool, target: Target
) -> cache.Source:
    if name in DATASETS:
        _refuse_target(name, target)
        return DATASETS[name](data_dir)
    kind, _, path = name.partition(":")
    if kind == "folder" and path:
        folder = local_path(path, "data.dataset")
        return image_folder.source(folder, skip_bad_images=skip_bad_images, target=target)
    if "://" in name:
        local_path(name, "data.dataset")
    hint = f"; did you mean folder:{path or name}?" if "/" in name else nearest(name, DATASETS)
    raise UserError(
        f"there is no data set {name!r}{hint or '.'} Choose {', '.join(DATASETS)}, or folder:PATH "
        "for your own images."
    )


def _refuse_target(name: str, target: Target) -> None:
    """Raise if a data set of arrays would have to be resized."""
    problem = ""
    if target.size != DEFAULT_TARGET.size:
        side = DEFAULT_TARGET.size
        problem = (
            f"data.image_size is {target.size}, but {name} has images of {side} × {side} pixels"
        )
    elif not target.center_crop:
        problem = f"data.center_crop has no effect on {name}, whose images are square"
    if problem:
        raise UserError(
            f"{problem}: leave out the setting, or set data.dataset to a folder of images "
            "(folder:PATH)"
        )
