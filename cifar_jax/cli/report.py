"""`cifar-jax report`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from cifar_jax.errors import UserError


@click.command(short_help="The paper against what was measured.")
@click.argument("runs", nargs=-1, type=click.Path(path_type=Path))
@click.option(
    "--output", type=click.Path(path_type=Path), help="Where report.md and curves/ are written."
)
@click.option(
    "--record",
    "records",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Instead, copy the results of RUNS into FOLDER, as records.",
)
@click.option(
    "--readme",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    metavar="FILE",
    help="Instead, renew the table in FILE from results/ beside it.",
)
def report(
    runs: Sequence[Path], output: Path | None, records: Path | None, readme: Path | None
) -> None:
    """Print the paper against what was measured, and write report.md with curves.

    RUNS are folders of runs, or folders with some at any depth; without any, runs/.
    """
    from cifar_jax import report

    if records and not runs:
        raise UserError("--record needs the run folders that it is to record")
    if records:
        for folder in runs:
            click.echo(f"recorded {report.record(folder, records)}")
    elif readme:
        changed = report.update_readme(readme, readme.parent / "results")
        click.echo(f"{readme} {'renewed' if changed else 'was current'}")
    elif written := report.report(runs, folder=output):
        click.echo(f"written to {written}")
