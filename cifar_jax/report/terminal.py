"""The table on a console: colored and as wide as the terminal, plain where there is none."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cifar_jax.report.groups import SeedGroup
from cifar_jax.report.table import Row, row

PLAIN_WIDTH = 100
ROOMY_WIDTH = 92
_PAPER = "Paper against measured"
_BETTER = "Better recipes, and the paper's best with the same network"
_OTHER = "With other settings or images"


def show(groups: Sequence[SeedGroup], console: Console | None = None) -> None:
    """Print the table of the paper's and others' experiments, and those of better recipes and of
    runs with other settings, where there are some."""
    console = console or Console(highlight=False)
    if not console.is_terminal:
        console = Console(file=console.file, width=PLAIN_WIDTH, highlight=False)
    own = [row(group) for group in groups if not group.changes and not group.better]
    better = [row(group) for group in groups if group.better]
    other = [row(group) for group in groups if group.changes]
    # One device is said once; a column of it would only take width.
    devices = {r.device for r in [*own, *better, *other] if r.device}
    each = len(devices) > 1 and console.width >= ROOMY_WIDTH
    for title, rows in ((_PAPER, own), (_BETTER, better), (_OTHER, other)):
        if rows:
            paper = title != _OTHER
            console.print(_table(title, rows, console.width, paper=paper, device=each))
            console.print()
    if not any(group.runs for group in groups):
        console.print(
            "No runs yet: [bold]make exp-basic[/], or [bold]cifar-jax train basic[/], trains the "
            "paper's first experiment. [bold]make demo[/] needs no download, and a few minutes."
        )
        return
    where = "" if each or not devices else f" Device: {escape('; '.join(sorted(devices)))}."
    console.print(
        "Accuracy on the test images in percent, after the last epoch: mean ± standard deviation "
        "over seeds. “At best” is after the epoch with the best validation accuracy. Time is a "
        f"run's.{where}",
        style="dim",
    )


def _table(title: str, rows: Sequence[Row], width: int, *, paper: bool, device: bool) -> Table:
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=SIMPLE_HEAD,
        show_edge=False,
        padding=(0, 1 if width >= ROOMY_WIDTH and not device else 0, 0, 0),
        pad_edge=False,
    )
    table.add_column("experiment", overflow="fold", min_width=20)
    if paper:
        table.add_column("para-\nmeters", justify="right")
        table.add_column("\npaper", justify="right", no_wrap=True)
    # Wide enough for a mean and its deviation; how far an unfinished run is may wrap.
    measured_width = 18 if width >= ROOMY_WIDTH and not device else 13
    table.add_column("\nmeasured", justify="right", min_width=12, max_width=measured_width)
    if paper:
        table.add_column("differ-\nence", justify="right", no_wrap=True)
    table.add_column("at\nbest", justify="right", no_wrap=True)
    table.add_column("\nepochs", justify="right", no_wrap=True)
    table.add_column("\ntime", justify="right", no_wrap=True)
    if device:
        table.add_column("\ndevice")
    for r in rows:
        ran = bool(r.measured)
        experiment = escape(r.experiment) if ran else f"[dim]{escape(r.experiment)}[/]"
        if r.changes:
            experiment = f"{escape(r.experiment)}\n[dim]{escape(' '.join(r.changes))}[/]"
        lines = [f"[bold]{r.measured}[/]"] if ran else []
        if r.seeds:
            lines += [f"[dim]{r.seeds}[/]"]
        # The column is narrow: "epoch 12/135" above "validation 78.4 %".
        so_far = [line.replace(" of ", "/").replace(": ", "\n") for line in r.unfinished]
        lines += [f"[dim]{line}[/]" for line in so_far]
        lines = lines or ["[dim]not run[/]"]
        color = "yellow" if r.difference.startswith("−") else "green"
        cells = [experiment]
        if paper:
            cells += [r.parameters.replace(" ≠", "\n≠") if ran else f"[dim]{r.parameters}[/]"]
            cells += [r.paper]
        cells += ["\n".join(lines)]
        if paper:
            cells += [f"[{color}]{r.difference}[/]"]
        cells += [r.best, r.epochs, r.wall_time]
        table.add_row(*cells, *([escape(r.device)] if device else []))
    return table
