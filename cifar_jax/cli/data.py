"""`cifar-jax data`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from cifar_jax.data import ImportResult


@click.group()
def data() -> None:
    """The CIFAR-10 images: what is there, and how to get them."""


@data.command()
def status() -> None:
    """Where data is looked for, and what is there."""
    from cifar_jax.data import status

    click.echo(status())


@data.command()
def prepare() -> None:
    """Download the official archive and prepare it."""
    from cifar_jax.data import default_data_dir, prepare

    _print_import(prepare(default_data_dir()))


@data.command("import", short_help="Prepare it from an archive or a folder.")
@click.argument("path", type=click.Path(path_type=Path))
def import_(path: Path) -> None:
    """Prepare CIFAR-10 offline from PATH.

    PATH is the official python or binary archive, packed or unpacked, or a folder with
    train/CLASS/*.png|jpg and test/CLASS/*.
    """
    from cifar_jax.data import default_data_dir, import_path

    _print_import(import_path(path, default_data_dir()))


def _print_import(result: ImportResult) -> None:
    counts = ", ".join(f"{count} {split}" for split, count in result.counts.items())
    click.echo(f"{result.recognized}: {counts} images")
    click.echo(f"official: {result.official or 'no'}")
    for remark in result.remarks:
        click.echo(remark)
    click.echo(f"written to {result.path}")
