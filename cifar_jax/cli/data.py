"""The command `cifar-jax data`."""

from __future__ import annotations

from pathlib import Path

import click

from cifar_jax.cli.output import LocalPath


@click.group()
def data() -> None:
    """Show, download or import the images of CIFAR-10 and CIFAR-100."""


@data.command()
def status() -> None:
    """Show the data folder, its data sets and the cache."""
    from cifar_jax.data import status

    click.echo(status())


@data.command(short_help="Download CIFAR-10 or CIFAR-100 and prepare it for training.")
@click.argument("name", type=click.Choice(["cifar10", "cifar100"]), default="cifar10")
def prepare(name: str) -> None:
    """Download the data set NAME and prepare it for training.

    NAME is cifar10 or cifar100. The default is cifar10.
    """
    from cifar_jax.data import prepare

    click.echo(f"{_title(name)} is prepared in {prepare(name)}")


@data.command("import", short_help="Prepare CIFAR-10 or CIFAR-100 from a downloaded archive.")
@click.argument("path", type=LocalPath())
def import_(path: Path) -> None:
    """Prepare CIFAR-10 or CIFAR-100 from PATH, without access to the internet.

    PATH is the official archive, cifar-10-python.tar.gz or cifar-100-python.tar.gz, or its unpacked
    folder, cifar-10-batches-py or cifar-100-python.
    """
    from cifar_jax.data import import_path

    folder = import_path(path)
    click.echo(f"{_title(folder.parent.name)} is prepared in {folder}")


def _title(name: str) -> str:
    return name.replace("cifar", "CIFAR-")
