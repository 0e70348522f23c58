"""The command `cifar-jax evaluate`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import click

from cifar_jax import runtime
from cifar_jax.cli.code import CODE, load_code
from cifar_jax.cli.output import AS_JSON, DEVICE, LocalPath
from cifar_jax.errors import UserError


@click.command(short_help="Print loss and accuracy of a trained model.")
@click.argument("run", type=LocalPath())
@click.option(
    "--split",
    type=click.Choice(["train", "validation", "test"]),
    default="test",
    show_default=True,
    help="Images to evaluate on.",
)
@click.option("--best", is_flag=True, help="Use the best epoch by the validation metric.")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="Where the images are now: data.dataset=folder:PATH.",
)
@CODE
@DEVICE
@AS_JSON
def evaluate(
    run: Path,
    split: str,
    best: bool,
    settings: Sequence[str],
    code: Path | None,
    device: str | None,
    as_json: bool,
) -> None:
    """Print the loss and accuracy of RUN on a split of the data set that it was trained on.

    RUN is a run folder, a file of `cifar-jax export` (safetensors or stablehlo), or the name of a
    packaged network, such as net-bn-gap. If the run used test-time augmentation, the accuracy with
    one view of each image is printed too.
    """
    if any(not setting.startswith("data.dataset=") for setting in settings):
        raise UserError("evaluate takes only --set data.dataset=NAME: leave out other settings")
    dataset = settings[-1].partition("=")[2] if settings else None
    runtime.set_up()
    runtime.require(device)
    from cifar_jax.inference.evaluate import evaluate

    result = evaluate(run, split, best, load_code(code, run), dataset)
    if as_json:
        click.echo(json.dumps(result._asdict(), indent=2))
        return
    epoch = "" if result.epoch is None else f", epoch {result.epoch}"
    text = (
        f"{result.experiment} seed {result.seed}{epoch}: {split} accuracy {result.accuracy:.2f} %, "
        f"loss {result.loss:.4f}, over {result.images:,} images"
    )
    if result.loss_plain != result.loss:
        text += (
            f"; with one view of each image {result.accuracy_plain:.2f} %, "
            f"loss {result.loss_plain:.4f}"
        )
    click.echo(text)
