"""Report the results of run folders and records as tables and a figure. JAX is not imported.

groups.py      runs that differ only in their seeds
recipes.py     pairs of better recipes and the paper's experiments, and other people's results
table.py       the text of a table's cells
terminal.py    the tables on a terminal
markdown.py    the tables in report.md and in the README
plots.py       the figure of accuracy by epoch
readme.py      the README's tables and figure, from the records in results/
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

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["SeedGroup", "collect", "read_runs", "readme_is_current", "report", "update_readme"]


def report(
    paths: Sequence[Path] = (), *, folder: Path | None = None, console: Console | None = None
) -> Path | None:
    """Print the tables of runs, and write report.md and its figure.

    Args:
      paths: run folders, folders that contain run folders at any depth, records (`*.json`), or
        folders of records. The default is the folder `runs`.
      folder: folder for report.md and its figure. None: the only path in `paths`, if it is a folder
        but not a run folder; otherwise nothing is written.
      console: rich console to print to. None: standard output.

    Returns:
      The path of report.md, or None if it was not written.

    Raises:
      UserError: a path contains no run, a run cannot be read, or `folder` is a file.
    """
    from cifar_jax.report import terminal

    if folder and folder.exists() and not folder.is_dir():
        raise UserError(f"--output {folder} is a file: name a folder")
    runs = read_runs(paths)
    groups = collect(runs)
    terminal.show(groups, console)
    folder = folder or _searched_folder(paths)
    return _write(groups, folder) if runs and folder else None


def _write(groups: Sequence[SeedGroup], folder: Path) -> Path:
    """Write report.md and report.svg to `folder`, and return the path of report.md."""
    from cifar_jax.report import markdown, plots

    folder.mkdir(parents=True, exist_ok=True)
    drawn = [group for group in groups if any(run.rows for run in group.runs)]
    if drawn:
        write_bytes(folder / "report.svg", plots.svg(drawn, "accuracy by epoch"))
    path = folder / "report.md"
    write_bytes(path, markdown.page(groups, "report.svg" if drawn else None).encode())
    return path


def _searched_folder(paths: Sequence[Path]) -> Path | None:
    """Return the only path in `paths` if it is a folder but not a run folder; otherwise None."""
    if len(paths) > 1:
        return None
    path = paths[0] if paths else RUNS
    return path if path.is_dir() and not (path / "config.json").exists() else None
