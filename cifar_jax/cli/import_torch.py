"""The command `cifar-jax import-torch`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cifar_jax import runtime
from cifar_jax.cli.output import LocalPath

_THREE = (float, float, float)


@click.command("import-torch", short_help="Write a PyTorch CIFAR ResNet as a run folder.")
@click.argument("file", type=LocalPath())
@click.option("--model", required=True, help="The network: resnet18 or resnet10.")
@click.option(
    "--workdir",
    type=LocalPath(),
    help="Run folder to create.  [default: runs/MODEL-imported/seed0]",
)
@click.option("--classes", help="Class names, separated by commas.  [default: CIFAR-10's]")
@click.option(
    "--mean",
    type=_THREE,
    help="Channel means that normalized the training images.  [default: CIFAR-10's]",
)
@click.option("--std", type=_THREE, help="Channel standard deviations.  [default: CIFAR-10's]")
def import_torch(
    file: Path,
    model: str,
    workdir: Path | None,
    classes: str | None,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
) -> None:
    """Write the PyTorch weights in FILE as a run folder.

    FILE contains a state dict. It is a safetensors file or a file of torch.save. Reading a file of
    torch.save needs PyTorch: pip install 'cifar-jax[torch]'. Layers must have the names of
    pytorch-cifar or torchvision. No code in FILE is executed. For a network that a script of
    pytorch-cifar trained, add --std 0.2023 0.1994 0.2010.
    """
    runtime.set_up()
    runtime.require("cpu")  # There is nothing to compute on an accelerator.

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
