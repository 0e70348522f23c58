"""`cifar-jax report`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from cifar_jax.errors import UserError


@click.command(short_help="The paper against what was measured.")
@click.argument("runs", nargs=-1, type=click.Path(path_type=Path))
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Where report.md and curves/ are written.",
)
@click.option(
    "--record",
    "results",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Instead, make records of RUNS in FOLDER: result, metrics and test outputs of a finished "
    "run, metrics alone of one on its way.",
)
@click.option(
    "--readme",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    metavar="FILE",
    help="Instead, renew the tables in FILE, and their figures, from results/ beside it.",
)
def report(
    runs: Sequence[Path], output: Path | None, results: Path | None, readme: Path | None
) -> None:
    """Print the paper against what was measured, and write report.md with figures.

    RUNS are run folders, records, or folders with some; without any, runs/. The report of one
    folder with runs in it is written there. That of runs named one by one is only printed, unless
    --output says where to write it.
    """
    if sum(map(bool, (output, results, readme))) > 1 or (readme and runs):
        raise UserError("--output, --record and --readme exclude each other, --readme and RUNS too")
    if results:
        if not runs:
            raise UserError("--record needs the run folders that it is to record")
        _record(runs, results)
        return
    from cifar_jax import report

    if readme:
        changed, passed_over = report.update_readme(readme, readme.parent / "results")
        for line in passed_over:
            click.echo(f"not in the table: {line}")
        click.echo(f"{readme} {'renewed' if changed else 'was current'}")
    elif written := report.report(runs, folder=output):
        click.echo(f"written to {written}")
    elif runs:
        click.echo("--output FOLDER writes this, with figures")


def _record(paths: Sequence[Path], results: Path) -> None:
    from cifar_jax.inference.outputs import test_outputs
    from cifar_jax.runs import records
    from cifar_jax.runs.reading import read_run

    found = [read_run(path) for path in paths]
    for run in found:  # what takes no computing is refused before any is done
        records.check(run, results)
    outputs = [test_outputs(run) if run.result else None for run in found]
    for run, of_test in zip(found, outputs, strict=True):
        click.echo(f"recorded {records.record(run, results, of_test)}")
