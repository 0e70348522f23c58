"""The command `cifar-jax data`."""

from __future__ import annotations

from pathlib import Path

import click

from cifar_jax.cli.output import LocalPath


@click.group()
def data() -> None:
    """Show, download or import the CIFAR-10 images."""


@data.command()
def status() -> None:
    """Show the data folder, its data sets and the cache."""
    from cifar_jax.data import status

    click.echo(status())


@data.command()
def prepare() -> None:
    """Download CIFAR-10 and prepare it for training."""
    from cifar_jax.data import prepare

    click.echo(f"CIFAR-10 is prepared in {prepare()}")


@data.command("import", short_help="Prepare CIFAR-10 from a downloaded archive.")
@click.argument("path", type=LocalPath())
def import_(path: Path) -> None:
    """Prepare CIFAR-10 from PATH, without access to the internet.

    PATH is the official archive, cifar-10-python.tar.gz, or its unpacked folder,
    cifar-10-batches-py.
    """
    from cifar_jax.data import import_path

    click.echo(f"CIFAR-10 is prepared in {import_path(path)}")
