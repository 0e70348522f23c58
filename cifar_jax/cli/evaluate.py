"""`cifar-jax evaluate`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from cifar_jax import runtime
from cifar_jax.cli.code import CODE, named_code
from cifar_jax.cli.output import AS_JSON, DEVICE


@click.command(short_help="Loss and accuracy of a run over a split.")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--split", type=click.Choice(["train", "validation", "test"]), default="test")
@click.option("--best", is_flag=True, help="The best epoch on validation, instead of the last.")
@CODE
@DEVICE
@AS_JSON
def evaluate(
    run: Path, split: str, best: bool, code: Path | None, device: str | None, as_json: bool
) -> None:
    """Loss and accuracy of RUN over a whole split.

    RUN is a run's folder; or a file that `cifar-jax export` made, or the name of an experiment
    whose weights come with the package: these on the test images.
    """
    runtime.set_up()
    runtime.require(device)
    from cifar_jax.inference.evaluate import evaluate

    found = evaluate(run, split, best, named_code(code, run))
    if as_json:
        click.echo(json.dumps(found, indent=2))
    else:
        click.echo(
            f"{found['experiment']} seed {found['seed']}, epoch {found['epoch']}: {split} accuracy "
            f"{found['accuracy']:.2f} %, loss {found['loss']:.4f}, over {found['images']} images"
        )
