"""The report that `cifar-jax data status` prints."""

from pathlib import Path

from cifar_jax.data import cache, cifar10, cifar100, cifar_prepare, digits, tfds_folder
from cifar_jax.data.cifar_archive import Archive
from cifar_jax.errors import UserError


def status(data_dir: Path | None = None) -> str:
    """Return a report about the data folder, its data sets and the cache.

    Only metadata are read. A damaged data set raises no error, but is named in the report.
    """
    data_dir = data_dir or tfds_folder.default_data_dir()
    root = cache.cache_dir()
    size = sum(file.stat().st_size for file in root.glob("*.npz"))
    official = [cifar10.ARCHIVE, cifar100.ARCHIVE]
    return "\n".join(
        [
            f"data folder: {data_dir}",
            *(f"  {a.name}:{a.version}: {_describe_official(a, data_dir)}" for a in official),
            *(f"  {name}: {_describe(path, name)}" for name, path in _others(data_dir).items()),
            f"  digits: part of the package, {_cached(digits.source())}",
            f"cache: {root} ({size / 1e6:.0f} MB of images)",
        ]
    )


def _describe_official(archive: Archive, data_dir: Path) -> str:
    path = cifar_prepare.folder(archive, data_dir)
    if path.exists():
        return _describe(path)
    argument = "" if archive is cifar10.ARCHIVE else f" {archive.name}"
    return (
        f"not prepared; `cifar-jax data prepare{argument}` downloads it, and "
        "`cifar-jax data import PATH` reads a downloaded archive"
    )


def _others(data_dir: Path) -> dict[str, Path]:
    """Return the folders of other data sets that tfds has prepared, by name."""
    official = (cifar10.ARCHIVE.name, cifar100.ARCHIVE.name)
    names = [name for name in tfds_folder.prepared(data_dir) if name not in official]
    return {f"tfds:{name}": tfds_folder.find(name, data_dir) for name in names}


def _describe(path: Path, name: str | None = None) -> str:
    try:
        folder = tfds_folder.inspect(path)
        counts = ", ".join(f"{count:,} {split}" for split, count in folder.counts.items())
        return f"{folder.format}, {counts} images, {_cached(tfds_folder.source(path, name))}"
    except UserError as error:
        return str(error)


def _cached(source: cache.Source) -> str:
    return "cached" if cache.is_fresh(source) else "not cached yet"
