"""Data sets as NumPy arrays, and augmentation on the device.

Heavy packages (tfds, Pillow, pooch, rich) are imported inside the functions that use them.
"""

import difflib
from collections.abc import Callable
from pathlib import Path

from cifar_jax.data import cache, cifar10, digits, image_folder
from cifar_jax.data.cifar10 import import_path, prepare
from cifar_jax.data.dataset import Dataset, Split, split_validation
from cifar_jax.data.status import status
from cifar_jax.data.tfds_folder import default_data_dir
from cifar_jax.errors import UserError

__all__ = [
    "DATASETS",
    "Dataset",
    "Split",
    "default_data_dir",
    "import_path",
    "load",
    "prepare",
    "split_validation",
    "status",
]

# To add a data set, add a function that takes the folder of prepared data sets.
DATASETS: dict[str, Callable[[Path], cache.Source]] = {
    "cifar10": cifar10.source,
    "digits": lambda data_dir: digits.source(),
}


def load(name: str, *, data_dir: Path | None = None) -> Dataset:
    """Load a data set. Images are decoded the first time and cached.

    Args:
      name: one of `DATASETS`, or `folder:PATH` for a folder of images (see `image_folder`).
      data_dir: the folder of prepared tfds data sets; by default `$TFDS_DATA_DIR` or
        `~/tensorflow_datasets`.

    Raises:
      UserError: the name is unknown, or the data are missing, damaged or cannot be normalized.
    """
    dataset = cache.load(_source(name, data_dir or default_data_dir()))
    return dataset._replace(official=dataset.content == cifar10.CONTENT)


def _source(name: str, data_dir: Path) -> cache.Source:
    if name in DATASETS:
        return DATASETS[name](data_dir)
    kind, _, path = name.partition(":")
    if kind == "folder" and path:
        return image_folder.source(Path(path))
    near = difflib.get_close_matches(name, DATASETS, n=1)
    if "/" in name:
        near = [f"folder:{path or name}"]
    hint = f"; did you mean {near[0]}?" if near else "."
    raise UserError(
        f"there is no data set {name!r}{hint} Choose {', '.join(DATASETS)}, or folder:PATH for "
        "your own images."
    )
