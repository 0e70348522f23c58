"""The command `cifar-jax report`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from cifar_jax.cli.output import LocalPath
from cifar_jax.errors import UserError


@click.command(short_help="Compare runs with the paper.")
@click.argument("runs", nargs=-1, type=LocalPath())
@click.option(
    "--output",
    type=LocalPath(),
    metavar="FOLDER",
    help="Write the report to FOLDER.",
)
@click.option("--no-pictures", is_flag=True, help="Leave images of the data set out of the report.")
@click.option(
    "--record",
    "results",
    type=LocalPath(),
    metavar="FOLDER",
    help="Write no report, but a record of each run to FOLDER. All runs must be finished and "
    "unchanged. A record has the result, metrics and test outputs of the run.",
)
@click.option(
    "--no-outputs", is_flag=True, help="With --record: leave out the logits of the test images."
)
@click.option(
    "--readme",
    type=LocalPath(exists=True, dir_okay=False),
    metavar="FILE",
    help="Write no report, but update the tables and the figures of FILE, and the tables of "
    "docs/paper.md, from the records in the folder results/ next to FILE.",
)
def report(
    runs: Sequence[Path],
    output: Path | None,
    no_pictures: bool,
    results: Path | None,
    no_outputs: bool,
    readme: Path | None,
) -> None:
    """Print a table of runs next to the paper's results, and write a report with figures.

    RUNS are run folders, records, or folders that contain run folders or records. The default is
    runs/. The report has a page for the browser, report.html, and a page for GitHub, report.md.
    Both pages are written to the folder RUNS. If there are several RUNS, they are written to the
    folder that contains all of them.
    """
    if sum(map(bool, (output, results, readme))) > 1:
        raise UserError("--output, --record and --readme cannot be combined: choose one")
    if readme and runs:
        raise UserError(
            "--readme reads the records in the folder results next to the file: leave out the run "
            "folders"
        )
    if results and not runs:
        raise UserError("no run folder is given: name the run folders to record")
    if no_pictures and (results or readme):
        raise UserError("--no-pictures has no effect with --record or --readme: leave it out")
    if no_outputs and not results:
        raise UserError("--no-outputs has no effect without --record FOLDER: add it")
    from cifar_jax import report
    from cifar_jax.runs import records

    if results:
        for path in records.record(report.read_runs(runs), results, with_outputs=not no_outputs):
            click.echo(f"recorded {path}")
    elif readme:
        changed, left_out = report.update_readme(readme, readme.parent / "results")
        for line in left_out:
            click.echo(f"not in the tables: {line}")
        click.echo(f"{readme} {'updated' if changed else 'is up to date'}")
        if (page := readme.parent / "docs" / "paper.md").exists():
            changed = report.update_page(page, readme.parent / "results")
            click.echo(f"{page} {'updated' if changed else 'is up to date'}")
    elif written := report.report(runs, folder=output, pictures=not no_pictures):
        click.echo(f"written to {' and '.join(map(str, written))}")
