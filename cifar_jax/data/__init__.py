"""Data sets as NumPy arrays: loading, preparing, importing, and holding out validation images.

Everything heavier than NumPy is imported when it is needed.
"""

import difflib
from collections.abc import Callable
from pathlib import Path

from cifar_jax.data.dataset import Dataset, Split, split_validation
from cifar_jax.errors import UserError

__all__ = ["DATASETS", "Dataset", "Split", "load", "split_validation"]


def _load_cifar10(data_dir: Path) -> Dataset:
    from cifar_jax.data import cache, tfds_folder

    return cache.load(tfds_folder.source(data_dir / "cifar10" / "3.0.2"))


def _load_digits(data_dir: Path) -> Dataset:
    from cifar_jax.data import cache, digits

    return cache.load(digits.source())


# A new data set is one more entry: its loader takes the folder of prepared data sets.
DATASETS: dict[str, Callable[[Path], Dataset]] = {
    "cifar10": _load_cifar10,
    "digits": _load_digits,
}


def load(name: str, *, data_dir: Path | None = None) -> Dataset:
    """Load a data set by name; every time after the first from a cache of decoded arrays.

    ``data_dir`` is the folder of prepared tfds data sets: by default $TFDS_DATA_DIR, or
    ~/tensorflow_datasets. Arrays may be read-only. Raises UserError for an unknown name, and for
    data that is absent or unreadable.
    """
    from cifar_jax.data.tfds_folder import default_data_dir

    if name not in DATASETS:
        near = difflib.get_close_matches(name, DATASETS, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UserError(f"unknown data set {name!r}: {hint}there are {', '.join(DATASETS)}")
    return DATASETS[name](data_dir or default_data_dir())
