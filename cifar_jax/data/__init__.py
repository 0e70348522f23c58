"""Data sets as NumPy arrays: loading, preparing, importing, and holding out validation images.

Whatever is heavier than NumPy (tfds, scikit-learn, Pillow, rich) is imported where it is used.
"""

import difflib
from collections.abc import Callable
from pathlib import Path

from cifar_jax.data import cache, cifar10, digits, image_folder
from cifar_jax.data.cifar10 import ImportResult, facts, import_path, prepare
from cifar_jax.data.dataset import Dataset, Split, split_validation
from cifar_jax.data.status import status
from cifar_jax.data.tfds_folder import default_data_dir
from cifar_jax.errors import UserError

__all__ = [
    "DATASETS",
    "Dataset",
    "ImportResult",
    "Split",
    "default_data_dir",
    "import_path",
    "load",
    "prepare",
    "split_validation",
    "status",
]

# A new data set is one more entry: it makes a source of the folder of prepared data sets.
DATASETS: dict[str, Callable[[Path], cache.Source]] = {
    "cifar10": cifar10.source,
    "digits": lambda data_dir: digits.source(),
}


def load(name: str, *, data_dir: Path | None = None) -> Dataset:
    """Load a data set by name; every time after the first from a cache of decoded arrays.

    ``name`` is one of `DATASETS`, or ``folder:PATH`` for a folder of images (`image_folder`).
    ``data_dir`` is the folder of prepared tfds data sets: by default $TFDS_DATA_DIR, or
    ~/tensorflow_datasets. Arrays may be read-only. Raises UserError for an unknown name, and for
    data that is absent, unreadable or cannot be normalized.
    """
    dataset = cache.load(_source(name, data_dir or default_data_dir()))
    return dataset._replace(official=dataset.content == facts.CONTENT)


def _source(name: str, data_dir: Path) -> cache.Source:
    kind, colon, path = name.partition(":")
    if (kind, colon) == ("folder", ":") and path:
        return image_folder.source(Path(path))
    if name in DATASETS:
        return DATASETS[name](data_dir)
    near = difflib.get_close_matches(name, DATASETS, n=1)
    if "/" in name or kind == "folder":
        near = [f"folder:{path or name}" if path or "/" in name else "folder:PATH"]
    hint = f"did you mean {near[0]}? " if near else ""
    raise UserError(
        f"unknown data set {name!r}: {hint}there are {', '.join(DATASETS)}, and folder:PATH "
        "for images of your own"
    )
