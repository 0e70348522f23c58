"""The report of `cifar-jax data status`."""

from pathlib import Path

from cifar_jax.data import cache, cifar10, digits, tfds_folder
from cifar_jax.errors import UserError

_MISSING = (
    "not there; `cifar-jax data prepare` downloads it, `cifar-jax data import PATH` takes the "
    "official archive"
)


def status(data_dir: Path | None = None) -> str:
    """Return a report about the data folder, its data sets and the cache.

    Only metadata are read. Damaged data are reported; they do not raise an error.
    """
    data_dir = data_dir or tfds_folder.default_data_dir()
    path = cifar10.folder(data_dir)
    root = cache.cache_dir()
    size = sum(file.stat().st_size for file in root.glob("*.npz"))
    return "\n".join(
        [
            f"data folder: {data_dir}",
            f"  cifar10:{cifar10.VERSION}: {_describe(path) if path.exists() else _MISSING}",
            f"  digits: part of the package, {_cached(digits.source())}",
            f"cache: {root} ({size / 1e6:.0f} MB of images)",
        ]
    )


def _describe(path: Path) -> str:
    try:
        folder = tfds_folder.inspect(path)
        counts = ", ".join(f"{count:,} {split}" for split, count in folder.counts.items())
        return f"{folder.format}, {counts} images, {_cached(tfds_folder.source(path))}"
    except UserError as error:
        return str(error)


def _cached(source: cache.Source) -> str:
    return "cached" if cache.is_fresh(source) else "not cached yet"
