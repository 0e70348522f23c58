"""Run folders and records in, tables and figures out. No JAX is imported; matplotlib only to draw.

groups.py        groups runs over seeds
recipes.py       better recipes beside the paper's own, and what others reach
table.py         words the cells of a group's row
terminal.py      the table on a console
markdown.py      the tables in report.md and in the README
plots.py         the figures of a report: curves, and the paper beside what was measured
wall_time.py     the figure of accuracy against wall time
predictions.py   confusion matrix and reliability diagram, where a record has outputs
style.py         colors, and figures as files
readme.py        the README's tables and figures, made of the records in results/
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cifar_jax.errors import UserError
from cifar_jax.files import write_bytes
from cifar_jax.report.groups import SeedGroup, collect
from cifar_jax.report.readme import readme_is_current, update_readme
from cifar_jax.runs.reading import RUNS, read_runs
from cifar_jax.runs.run import Run

if TYPE_CHECKING:
    from rich.console import Console

__all__ = [
    "RUNS",
    "Run",
    "SeedGroup",
    "collect",
    "read_runs",
    "readme_is_current",
    "report",
    "show",
    "update_readme",
    "write",
]


def report(
    paths: Sequence[Path] = (), *, folder: Path | None = None, console: Console | None = None
) -> Path | None:
    """Print the table of the runs, and write report.md with figures.

    Args:
      paths: run folders, folders that hold some at any depth, records (`*.json`), or a folder of
        records; `runs` if there are none.
      folder: where to write. By default where it was searched, if that is one folder with runs in
        it; the report of runs that are named one by one is only printed, so that it replaces no
        report of all.
      console: where to print.

    Returns:
      The report.md, or None where nothing was written.

    Raises:
      UserError: a path without a run, or a run that cannot be read.
    """
    runs = read_runs(paths)
    groups = collect(runs)
    show(groups, console)
    if not folder and len(paths) < 2:
        (searched,) = paths or [RUNS]
        if searched.is_dir() and not (searched / "config.json").exists():
            folder = searched
    return write(groups, folder) if runs and folder else None


def show(groups: Sequence[SeedGroup], console: Console | None = None) -> None:
    """Print the table, and how to make a run where there is none."""
    from cifar_jax.report import terminal

    terminal.show(groups, console)


def write(groups: Sequence[SeedGroup], folder: Path) -> Path:
    """Write report.md and curves/*.png in `folder`, each whole or not at all; returns report.md.

    Raises:
      UserError: the folder cannot be written.
    """
    from cifar_jax.report import markdown, plots

    figures = plots.draw(groups)
    path = folder / "report.md"
    try:
        (folder / "curves").mkdir(parents=True, exist_ok=True)
        for figure in figures:
            write_bytes(folder / "curves" / figure.name, figure.png)
        # Last, so that it never refers to a picture that is not there yet.
        write_bytes(path, markdown.page(groups, figures).encode())
    except OSError as error:
        raise UserError(f"the report cannot be written to {folder}: {error.strerror}") from None
    return path
