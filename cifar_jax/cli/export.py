"""The command `cifar-jax export`."""

from __future__ import annotations

from pathlib import Path

import click

from cifar_jax import runtime
from cifar_jax.cli.code import CODE, load_code
from cifar_jax.cli.output import LocalPath


@click.command(
    short_help="Write a trained model as a StableHLO, ONNX, safetensors or PyTorch file."
)
@click.argument("run", type=LocalPath())
@click.option(
    "--to",
    "kind",
    required=True,
    type=click.Choice(["safetensors", "stablehlo", "onnx", "torch"]),
    help="safetensors: the weights and the model card. stablehlo: a program for JAX on cpu, cuda "
    "and tpu. onnx: a program for ONNX runtimes. Both programs compute logits from uint8 images "
    "[N, H, W, 3], for any N. torch: the weights with PyTorch's names, as a safetensors file.",
)
@click.option(
    "--output",
    type=LocalPath(),
    help="File to write.  [default: EXPERIMENT-seedN.TO; for torch, "
    "EXPERIMENT-seedN.torch.safetensors]",
)
@click.option("--best", is_flag=True, help="Use the epoch with the best validation metric.")
@CODE
@click.option("--force", is_flag=True, help="Replace an existing file.")
def export(
    run: Path, kind: str, output: Path | None, best: bool, code: Path | None, force: bool
) -> None:
    """Write the model of RUN to one file.

    RUN is a run folder, a safetensors file, or the name of a packaged network. The file is written
    only if its logits match the logits of the model.
    """
    runtime.set_up()
    runtime.require()

    from cifar_jax.inference import exports
    from cifar_jax.inference.load import load

    model = load(run, best=best, custom=load_code(code, run))
    if output is None:
        suffix = "torch.safetensors" if kind == "torch" else kind
        output = Path(f"{model.card.experiment}-seed{model.card.seed}.{suffix}")
    difference = exports.export(model, kind, output, force=force)
    click.echo(
        f"written to {output} ({output.stat().st_size / 1e6:.1f} MB); its logits differ from those "
        f"of {run} by at most {difference:.1e} of the largest logit"
    )
    card = model.card
    if kind == "torch":
        mean, std = (" ".join(f"{x:.4f}" for x in values) for values in (card.mean, card.std))
        height, width, channels = card.input_shape
        click.echo(
            f"the PyTorch network takes images [N, {channels}, {height}, {width}] with pixels of 0 "
            f"to 1, normalized with mean {mean} and std {std}"
        )
    if card.test_accuracy_plain not in (None, card.test_accuracy):
        click.echo(
            f"test accuracy {card.test_accuracy_plain:.2f} % with one view of each image, which is "
            f"what the file computes; {card.test_accuracy:.2f} % with test-time augmentation"
        )
