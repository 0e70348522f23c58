"""The command `cifar-jax import-torch`."""

from __future__ import annotations

from pathlib import Path

import click

from cifar_jax import runtime
from cifar_jax.cli.output import LocalPath, WholeNumber
from cifar_jax.errors import UserError

_THREE = (float, float, float)
_NORMALIZATIONS = {
    "cifar10": (),
    "pytorch-cifar": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}
"""Mean and standard deviation of each channel, by name. The import uses CIFAR-10's by default."""
_LOW = 80.0
"""Accuracy on CIFAR-10, in percent. Every well-trained ResNet exceeds this accuracy."""


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
    "--normalization",
    type=click.Choice(list(_NORMALIZATIONS)),
    default="cifar10",
    show_default=True,
    help="Normalization of the training images.",
)
@click.option("--mean", type=_THREE, help="Channel means, instead of --normalization.")
@click.option("--std", type=_THREE, help="Channel standard deviations, likewise.")
@click.option(
    "--image-size",
    type=WholeNumber(8, 1024),
    default=32,
    show_default=True,
    help="Height and width of the training images.",
)
@click.option("--stem-pool", is_flag=True, help="Max-pooling follows the first convolution.")
def import_torch(
    file: Path,
    model: str,
    workdir: Path | None,
    classes: str | None,
    normalization: str,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
    image_size: int,
    stem_pool: bool,
) -> None:
    """Write the PyTorch weights in FILE as a run folder.

    FILE is a safetensors file or a file of torch.save, and contains a state dict. Reading a file of
    torch.save needs PyTorch: pip install 'cifar-jax[torch]'. Layers must have the names of
    pytorch-cifar or torchvision. No code in FILE is executed.

    Weights show neither the pooling nor the normalization of a network. For a network that a script
    of pytorch-cifar trained, add --normalization pytorch-cifar. If CIFAR-10 is on this machine, the
    accuracy on its first 1,000 test images is printed.
    """
    if (mean or std) and normalization != "cifar10":
        raise UserError("--normalization sets the mean and std: leave out --mean and --std")
    runtime.set_up()
    runtime.require("cpu")  # There is nothing to compute on an accelerator.

    from cifar_jax.inference.evaluate import quick_accuracy
    from cifar_jax.inference.torch_weights import import_torch

    options = dict(zip(("mean", "std"), _NORMALIZATIONS[normalization], strict=False))
    options |= {name: value for name, value in (("mean", mean), ("std", std)) if value}
    folder = workdir or Path("runs") / f"{model}-imported" / "seed0"
    network, key, ignored = import_torch(
        file,
        model,
        folder,
        classes=[name.strip() for name in classes.split(",")] if classes else None,
        stem_pool=stem_pool,
        image_size=image_size,
        **options,
    )
    mean_text, std_text = (
        " ".join(f"{value:.4g}" for value in values)
        for values in (network.card.mean, network.card.std)
    )
    click.echo(
        f"{model} with {len(network.classes)} classes, written to {folder}\n"
        f"Assumed, because weights do not show it: {'' if stem_pool else 'no '}max-pooling after "
        f"the first convolution, which has stride 1; ReLU; images of {image_size}×{image_size} "
        f"pixels; mean {mean_text}; std {std_text}"
    )
    if ignored:
        more = f" and {len(ignored) - 5} more" if len(ignored) > 5 else ""
        source = f"Used the state dict {key}. " if key else ""
        click.echo(f"{source}Ignored in {file}: {', '.join(ignored[:5])}{more}")
    accuracy = quick_accuracy(network)
    if accuracy is None:
        click.echo(
            "Accuracy not measured: CIFAR-10 is not on this machine, or the network has other "
            "classes or another image size"
        )
        return
    click.echo(f"Accuracy on the first 1,000 test images of CIFAR-10: {accuracy:.1f} %")
    if accuracy < _LOW:
        click.echo(
            f"cifar-jax: {accuracy:.1f} % is far below the accuracy of trained weights: the "
            "network that was trained is probably another one. Import the file into another "
            f"--workdir with {'' if stem_pool else '--stem-pool or '}another --normalization, or "
            "compare the logits with PyTorch's.",
            err=True,
        )
