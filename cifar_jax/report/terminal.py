"""Print the tables in the width of the terminal, or as plain text if there is no terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cifar_jax import tables
from cifar_jax.report.groups import Section, SeedGroup
from cifar_jax.report.study import Study
from cifar_jax.report.table import Row, row

_PLAIN_WIDTH = 100
_WIDE = 92
_TITLES: dict[Section, str] = {
    "paper": "Paper and measured",
    "recipes": "Better recipes, next to the paper's best accuracy with the same network",
    "variants": "Variants, with the paper's accuracy of the experiment that is varied",
    "changed": "With changed settings or images",
}


def show(
    groups: Sequence[SeedGroup], console: Console | None = None, studies: Sequence[Study] = ()
) -> None:
    """Print the tables, and a line for each study.

    The paper's table is left out if all runs belong to other tables. If there are neither runs nor
    studies, also print how to start a run.

    Numbers are never cut, so the tables may be wider than a narrow terminal.
    """
    console = console or Console(highlight=False)
    if not console.is_terminal:
        console = Console(file=console.file, width=_PLAIN_WIDTH, highlight=False)
    rows = [row(group) for group in groups]
    nothing_ran = not studies and not any(group.runs for group in groups)
    # A single device is named below the tables, which saves a column.
    devices = {r.device for r in rows if r.device}
    device_column = len(devices) > 1 and console.width >= _WIDE
    wide = console.width >= _WIDE and not device_column
    for section in _TITLES:
        pairs = [(g, r) for g, r in zip(groups, rows, strict=True) if g.section == section]
        if pairs and (nothing_ran or any(group.runs for group, _ in pairs)):
            listed = [r for _, r in pairs]
            table = _table(section, listed, wide=wide, device_column=device_column)
            tables.print_table(table, console)
            console.print()
    for study in studies:
        console.print(escape(study.summary))
    if not any(group.runs for group in groups):
        if studies:
            return
        console.print(
            "No runs yet. [bold]make exp-basic[/] or [bold]cifar-jax train basic[/] trains the "
            "paper's first experiment; [bold]make demo[/] needs no download and takes minutes."
        )
        return
    where = "" if device_column or not devices else f" Device: {escape('; '.join(sorted(devices)))}"
    console.print(
        "Accuracy on the test images in percent, after the last epoch: mean ± standard deviation "
        "over seeds. At best: at the best epoch by train.best_by, by default the validation "
        f"accuracy. Time: wall time of one run.{where}",
        style="dim",
    )


def _table(section: Section, rows: Sequence[Row], *, wide: bool, device_column: bool) -> Table:
    compared = section != "changed"
    table = Table(
        title=_TITLES[section],
        title_justify="left",
        title_style="bold",
        box=SIMPLE_HEAD,
        show_edge=False,
        padding=(0, 1 if wide else 0, 0, 0),
        pad_edge=False,
    )
    table.add_column("experiment", overflow="fold", min_width=20)
    if compared:
        table.add_column("para-\nmeters", justify="right", no_wrap=True)
        table.add_column("\npaper", justify="right", no_wrap=True)
    table.add_column("\nmeasured", justify="right", min_width=12, max_width=18 if wide else 13)
    if compared:
        table.add_column("differ-\nence", justify="right", no_wrap=True)
    table.add_column("at\nbest", justify="right", no_wrap=True)
    table.add_column("\nepochs", justify="right", no_wrap=True)
    table.add_column("\ntime", justify="right", no_wrap=True)
    if device_column:
        table.add_column("\ndevice")
    for r in rows:
        table.add_row(*_cells(r, compared), *([escape(r.device)] if device_column else []))
    return table


def _cells(r: Row, compared: bool) -> list[str]:
    experiment, parameters = escape(r.experiment), r.parameters.replace(" ≠", "\n≠")
    if not r.measured:
        experiment, parameters = f"[dim]{experiment}[/]", f"[dim]{parameters}[/]"
    if r.changes:
        experiment = f"{escape(r.experiment)}\n[dim]{escape(' '.join(r.changes))}[/]"
    # Put "epoch 12/135" and "validation 78.4 %" on two lines, to fit the narrow column.
    progress = [text.replace(" of ", "/").replace(": ", "\n") for text in r.unfinished]
    details = [f"[dim]{text}[/]" for text in (r.seeds, *progress) if text]
    measured = [f"[bold]{r.measured}[/]"] if r.measured else []
    accuracy = "\n".join([*measured, *details] or ["[dim]not run[/]"])
    if not compared:
        return [experiment, accuracy, r.best, r.epochs, r.wall_time]
    color = "yellow" if r.difference.startswith("−") else "green"
    difference = f"[{color}]{r.difference}[/]"
    compared_cells = [experiment, parameters, r.paper, accuracy, difference]
    return [*compared_cells, r.best, r.epochs, r.wall_time]
