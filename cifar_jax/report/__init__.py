"""Run folders and records in, tables and curves out. No JAX is imported; matplotlib only to draw.

runs.py       reads run folders and records
table.py      groups runs over seeds and words the cells of a row
terminal.py   the table on a console
markdown.py   the table in report.md and in the README
plots.py      the curves
records.py    results/*.json, and the README's table made from them
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cifar_jax.report.records import readme_is_current, record, update_readme
from cifar_jax.report.table import Group, collect
from cifar_jax.runs.reading import RUNS, Run, read_runs

if TYPE_CHECKING:
    from rich.console import Console

__all__ = [
    "RUNS",
    "Group",
    "Run",
    "collect",
    "read_runs",
    "readme_is_current",
    "record",
    "report",
    "show",
    "update_readme",
    "write",
]


def report(
    paths: Sequence[Path] = (), *, folder: Path | None = None, console: Console | None = None
) -> Path | None:
    """Print the table of the runs, and write report.md with the curves.

    Args:
      paths: run folders, folders that hold some at any depth, or records (`*.json`);
        `runs` if there are none.
      folder: where to write; by default the one folder that was searched, else `runs`.
      console: where to print.

    Returns:
      The report.md, or None where there is no run: then nothing is written.

    Raises:
      UserError: a path without a run, or a run that cannot be read.
    """
    runs = read_runs(paths)
    groups = collect(runs)
    show(groups, console)
    if not runs:
        return None
    searched = [path for path in paths if path.is_dir() and not (path / "config.json").exists()]
    return write(groups, folder or (searched[0] if len(paths) == len(searched) == 1 else RUNS))


def show(groups: Sequence[Group], console: Console | None = None) -> None:
    """Print the table, and how to make a run where there is none."""
    from cifar_jax.report import terminal

    terminal.show(groups, console)


def write(groups: Sequence[Group], folder: Path) -> Path:
    """Write report.md and curves/*.png in `folder`, each whole or not at all; returns report.md.

    Raises:
      UserError: the folder cannot be written.
    """
    from cifar_jax.errors import UserError
    from cifar_jax.report import markdown, plots

    figures = plots.draw(groups)
    path = folder / "report.md"
    try:
        (folder / "curves").mkdir(parents=True, exist_ok=True)
        for figure in figures:
            _write(folder / "curves" / figure.name, figure.png)
        # Last, so that it never refers to a picture that is not there yet.
        _write(path, markdown.page(groups, figures).encode())
    except OSError as error:
        raise UserError(f"the report cannot be written to {folder}: {error.strerror}") from None
    return path


def _write(path: Path, content: bytes) -> None:
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_bytes(content)
    beside.replace(path)
