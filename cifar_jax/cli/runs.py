"""The command `cifar-jax runs`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from cifar_jax.cli.output import AS_JSON, LocalPath

if TYPE_CHECKING:
    from cifar_jax.report.listing import Entry


@click.command(short_help="List the runs and their state.")
@click.argument("folder", type=LocalPath(), default="runs")
@AS_JSON
def runs(folder: Path, as_json: bool) -> None:
    """List the runs in FOLDER and its subfolders. The default is runs/.

    The state of a run is running, stopped, finished, damaged or imported. A trial of a study may
    also be pruned. To continue a stopped run, repeat its `cifar-jax train` command.
    """
    from cifar_jax.cli.output import print_table
    from cifar_jax.report.listing import list_runs

    entries = list_runs(folder)
    if as_json:
        import json

        click.echo(json.dumps([entry._asdict() for entry in entries], indent=2))
        return
    if not entries:
        click.echo(f"{folder} contains no runs. `cifar-jax train basic` starts one.")
        return
    columns = ("run", "state", "epoch", "validation, %", "test, %", "time left", "last change")
    print_table(columns, [_cells(entry, folder) for entry in entries], right=(2, 3, 4, 5, 6))
    for entry in entries:
        if entry.problem:
            click.echo(f"{entry.path}: {entry.problem}")


def _cells(entry: Entry, folder: Path) -> tuple[str, ...]:
    from cifar_jax.report.table import duration

    def percent(value: float | None) -> str:
        return "" if value is None else f"{value:.2f}"

    def time(minutes: float | None) -> str:
        return "" if minutes is None else duration(60 * minutes)

    path = Path(entry.path)
    return (
        str(path) if path == folder else str(path.relative_to(folder)),
        entry.state,
        "" if entry.epochs is None else f"{entry.epoch}/{entry.epochs}",
        percent(entry.validation_accuracy),
        percent(entry.test_accuracy),
        time(entry.minutes_left),
        f"{time(entry.age_minutes)} ago",
    )
