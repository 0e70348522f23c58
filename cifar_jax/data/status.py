"""What `cifar-jax data status` says."""

import contextlib
import os
from pathlib import Path

from cifar_jax.data import cache, cifar10, digits, tfds_folder
from cifar_jax.errors import UserError


def status(data_dir: Path | None = None) -> str:
    """Lines that say where data is looked for, what is there, and what the cache holds.

    Reads metadata only, and raises for nothing that it finds.
    """
    data_dir = data_dir or tfds_folder.default_data_dir()
    root = cache.cache_dir()
    lines = [f"data folder: {data_dir}"]
    if os.path.isfile(data_dir):  # noqa: PTH113 - Path.is_file raises where a name is too long
        lines[0] += " (a file, not a folder: set TFDS_DATA_DIR to a folder)"
    wanted = cifar10.folder(data_dir)
    versions = _folders(wanted.parent)
    if wanted not in versions:
        lines.append(
            f"  cifar10:{cifar10.VERSION}: not there; `cifar-jax data prepare` downloads it, "
            "`cifar-jax data import PATH` prepares it from an archive or an image folder"
        )
    for path in versions:
        lines.append(f"  cifar10:{path.name}: {_describe(path)}")
    lines.append("  digits: embedded, needs no folder")
    size = _size(root)
    lines.append(f"cache: {root} ({size / 1e6:.0f} MB)")
    if wanted in versions:
        lines.append(f"  cifar10: {_freshness(wanted)}")
    fresh = cache.is_fresh(digits.source())
    lines.append(f"  digits: {'fresh' if fresh else 'decoded at the next start'}")
    return "\n".join(lines)


def _folders(path: Path) -> list[Path]:
    try:
        return sorted(p for p in path.glob("*.*.*") if p.is_dir())
    except OSError:
        return []


def _size(folder: Path) -> int:
    size = 0
    with contextlib.suppress(OSError):
        for file in folder.rglob("*"):
            size += file.stat().st_size if file.is_file() else 0
    return size


def _describe(path: Path) -> str:
    try:
        found = tfds_folder.inspect(path)
    except UserError as error:
        return str(error)
    counts = ", ".join(f"{count:,} {split}" for split, count in found.counts.items())
    text = f"{found.format}, {counts} images"
    if path.name != cifar10.VERSION:
        text += f"; not used: version {cifar10.VERSION} is"
    return text


def _freshness(path: Path) -> str:
    try:
        fresh = cache.is_fresh(tfds_folder.source(path))
    except UserError:
        return "the folder cannot be used"
    return "fresh" if fresh else "decoded at the next start"
