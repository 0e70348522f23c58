"""`cifar-jax import-torch`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cifar_jax import runtime

_THREE = (float, float, float)


@click.command("import-torch", short_help="A PyTorch CIFAR ResNet as a run's folder.")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--model", required=True, help="Its network: resnet18 or resnet10.")
@click.option(
    "--workdir", type=click.Path(path_type=Path), help="The folder.  [runs/MODEL-imported/seed0]"
)
@click.option("--classes", help="Their names, separated by commas.  [CIFAR-10's]")
@click.option("--mean", type=_THREE, help="What its images were normalized by.  [CIFAR-10's]")
@click.option("--std", type=_THREE, help="The same.  [CIFAR-10's]")
def import_torch(
    file: Path,
    model: str,
    workdir: Path | None,
    classes: str | None,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
) -> None:
    """Make a run's folder of the state dict in FILE, of torch.save or safetensors.

    Layers are named as in pytorch-cifar or torchvision. Nothing in FILE is executed, and PyTorch
    is not needed. Scripts of pytorch-cifar normalize with --std 0.2023 0.1994 0.2010.
    """
    runtime.set_up()
    runtime.require("cpu")  # no device has work here

    from cifar_jax.inference.torch_weights import import_torch

    options: dict[str, Any] = {"mean": mean, "std": std}
    folder = workdir or Path("runs") / f"{model}-imported" / "seed0"
    network = import_torch(
        file,
        model,
        folder,
        classes=[name.strip() for name in classes.split(",")] if classes else None,
        **{name: value for name, value in options.items() if value},
    )
    click.echo(f"{model} with {len(network.classes)} classes, written to {folder}")
