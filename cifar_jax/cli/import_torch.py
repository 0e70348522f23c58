"""The command `cifar-jax import-torch`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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
"""Mean and standard deviation of each color channel, for each choice of --normalization. An empty
tuple stands for the mean and standard deviation of CIFAR-10."""
_ASSUMED = {"speednet": "2×2 max-pooling; GELU as the tanh approximation"}
"""Description of a network's pooling and activation, which a state dict does not show. The default
is 2×2 max-pooling and ReLU. ResNets have a description of their own."""
_LOW = {"basic": 50.0, "net": 70.0}
"""Accuracy on CIFAR-10, in percent, below which the import prints a warning. It is 80 % for the
other networks."""


@click.command("import-torch", short_help="Write the weights of a PyTorch network as a run folder.")
@click.argument("file", type=LocalPath())
@click.option(
    "--model", required=True, help="Name of the network. `cifar-jax models` lists the names."
)
@click.option(
    "--workdir",
    type=LocalPath(),
    help="Run folder to create.  [default: runs/MODEL-imported/seed0]",
)
@click.option("--classes", help="Class names, separated by commas.  [default: CIFAR-10's]")
@click.option(
    "--normalization",
    type=click.Choice(list(_NORMALIZATIONS)),
    help="Normalization of the training images.  [default: cifar10]",
)
@click.option("--mean", type=_THREE, help="Channel means, instead of --normalization.")
@click.option("--std", type=_THREE, help="Channel standard deviations, instead of --normalization.")
@click.option(
    "--image-size",
    type=WholeNumber(8, 1024),
    help="Height and width of the training images.  [default: 32]",
)
@click.option(
    "--stem-pool", is_flag=True, help="The network has max-pooling after the first layer."
)
def import_torch(
    file: Path,
    model: str,
    workdir: Path | None,
    classes: str | None,
    normalization: str | None,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
    image_size: int | None,
    stem_pool: bool,
) -> None:
    """Write the PyTorch weights in FILE as a run folder.

    FILE is a safetensors file or a file of torch.save, and contains a state dict. Reading a file of
    torch.save needs PyTorch: pip install 'cifar-jax[torch]'. The layers of a ResNet must have the
    names of pytorch-cifar or torchvision. Other layers must have the names of this package. No code
    in FILE is executed.

    A file of `cifar-jax export --to torch` has a model card. The card sets all options that are not
    given. Other files show neither the pooling nor the normalization of a network. For a network
    that was trained with pytorch-cifar, add --normalization pytorch-cifar. If CIFAR-10 is on
    this machine, the accuracy on its first 1,000 test images is printed.
    """
    if (mean or std) and normalization:
        raise UserError("--normalization sets the mean and std: leave out --mean and --std")
    runtime.set_up()
    runtime.require("cpu")  # The CPU is sufficient for the import.

    from cifar_jax.inference.evaluate import quick_accuracy
    from cifar_jax.inference.torch_weights import (
        CIFAR10_MEAN,
        CIFAR10_STD,
        exported_card,
        import_torch,
    )

    values: Any = ()
    if normalization:
        values = _NORMALIZATIONS[normalization] or (CIFAR10_MEAN, CIFAR10_STD)
    options: dict[str, Any] = dict(zip(("mean", "std"), values, strict=False))
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
    is_resnet = model.startswith("resnet")
    size = network.image_shape[0]
    images = f"images of {size}×{size} pixels; mean {mean_text}; std {std_text}"
    click.echo(f"{model} with {len(network.classes)} classes, written to {folder}")
    if exported_card(file):
        click.echo(f"From the model card in the file, and from the options: {images}")
    else:
        layers = _ASSUMED.get(model, "2×2 max-pooling; ReLU")
        if is_resnet:
            layers = (
                f"{'' if stem_pool else 'no '}max-pooling after the first convolution, which has "
                "stride 1; ReLU after the sum of each block"
            )
        click.echo(f"Assumed, because weights do not show it: {layers}; {images}")
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
    if accuracy < _LOW.get(model, 80.0) and not exported_card(file):
        click.echo(
            f"cifar-jax: {accuracy:.1f} % is far below the accuracy of trained weights: the "
            "assumptions above are probably wrong. Import the file again, into another --workdir, "
            f"with {'--stem-pool or ' if is_resnet and not stem_pool else ''}another "
            "--normalization. Or compare the logits with PyTorch's.",
            err=True,
        )
