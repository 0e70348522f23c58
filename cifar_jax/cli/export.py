"""`cifar-jax export`."""

from __future__ import annotations

from pathlib import Path

import click

from cifar_jax import runtime
from cifar_jax.cli.code import CODE, named_code


@click.command(short_help="A trained model as one file: StableHLO, ONNX or safetensors.")
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--to",
    "kind",
    required=True,
    type=click.Choice(["safetensors", "stablehlo", "onnx"]),
    help="Weights with their card, or a program that takes uint8 images [N, 32, 32, 3], for any N, "
    "and gives logits: for JAX on cpu, cuda and tpu, or for ONNX runtimes.",
)
@click.option("--output", type=click.Path(path_type=Path), help="The file.  [EXPERIMENT-seedN.TO]")
@click.option("--best", is_flag=True, help="The best epoch on validation, instead of the last.")
@CODE
@click.option("--force", is_flag=True, help="Replace a file that is there.")
def export(
    run: Path, kind: str, output: Path | None, best: bool, code: Path | None, force: bool
) -> None:
    """Write the model of the run in folder RUN, or of a safetensors file, to one file.

    Its answers are compared with the run's own before the file is there.
    """
    runtime.set_up()
    runtime.require()

    from cifar_jax.inference import exports
    from cifar_jax.inference.load import load

    model = load(run, best=best, own=named_code(code, run))
    if output is None:
        output = Path(f"{model.card['experiment']}-seed{model.card['seed']}.{kind}")
    difference = exports.export(model, kind, output, force=force)
    click.echo(
        f"written to {output} ({output.stat().st_size / 1e6:.1f} MB); its logits differ from the "
        f"run's by at most {difference:.1e} of the largest"
    )
