"""Report the results of run folders and records as tables and figures. JAX is not imported.

groups.py      runs that differ only in their seeds
recipes.py     pairs of better recipes and the paper's experiments, and other people's results
table.py       the text of a table's cells
terminal.py    the tables on a terminal
markdown.py    the tables in report.md and in the README
plots.py       the figure of accuracy by epoch
minutes.py     the figure of accuracy by minutes of training
html.py        the report page, report.html, from templates/
views.py       the figures of the page about predicted classes
charts.py      the line charts of the page
curves.py      metrics by epoch, and their mean over the seeds
answers.py     the predicted classes of validation and test images
confusion.py   which classes a network confuses
pictures.py    images of the data set on the page
compare.py     the difference in accuracy between two groups of runs
claims.py      the conclusions of the paper, and their tests
paper.py       the tables of docs/paper.md, from the records in results/
listing.py     the list of run folders and their states
study.py       studies of `cifar-jax tune`, which search for better settings
readme.py      the README's tables and figures, from the records in results/
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cifar_jax.errors import UserError
from cifar_jax.files import write_bytes
from cifar_jax.report.groups import SeedGroup, collect
from cifar_jax.report.paper import page_is_current, update_page
from cifar_jax.report.readme import readme_is_current, update_readme
from cifar_jax.report.study import Study, find_studies, read_study
from cifar_jax.runs.reading import RUNS, read_runs

if TYPE_CHECKING:
    from rich.console import Console

__all__ = [
    "SeedGroup",
    "collect",
    "page_is_current",
    "read_runs",
    "readme_is_current",
    "report",
    "update_page",
    "update_readme",
]


def report(
    paths: Sequence[Path] = (),
    *,
    folder: Path | None = None,
    pictures: bool = True,
    console: Console | None = None,
) -> list[Path]:
    """Print the tables of runs, and write report.html, report.md and the figure of report.md.

    Args:
      paths: run folders, folders that contain run folders at any depth, records (`*.json`), or
        folders of records. The default is the folder `runs`.
      folder: folder for the files. None: the only path in `paths` if it is a folder, otherwise the
        folder that contains all paths.
      pictures: whether report.html shows wrongly classified images.
      console: rich console to print to. None: standard output.

    Returns:
      The paths of report.html and report.md. Empty if there are no runs.

    Raises:
      UserError: a path contains no run, a run cannot be read, or `folder` is a file.
    """
    from cifar_jax.report import terminal

    if folder and folder.exists() and not folder.is_dir():
        raise UserError(f"--output {folder} is a file: name a folder")
    runs = read_runs(paths, trials=False)
    studies = [read_study(found) for found in find_studies(paths or [RUNS])]
    groups = collect(runs)
    terminal.show(groups, console, studies)
    if not runs and not studies:
        return []
    return _write(groups, studies, folder or _common_folder(paths), pictures=pictures)


def _write(
    groups: Sequence[SeedGroup], studies: Sequence[Study], folder: Path, *, pictures: bool
) -> list[Path]:
    """Write the files to `folder`, and return the paths of report.html and report.md."""
    from cifar_jax.report import html, markdown, plots

    page = html.page(groups, studies, pictures=pictures)
    folder.mkdir(parents=True, exist_ok=True)
    drawn = [group for group in groups if any(run.rows for run in group.runs)]
    if drawn:
        write_bytes(folder / "report.svg", plots.svg(drawn, "accuracy by epoch"))
    text = markdown.page(groups, studies, "report.svg" if drawn else None)
    written = {"report.html": page, "report.md": text}
    for name, content in written.items():
        write_bytes(folder / name, content.encode())
    return [folder / name for name in written]


def _common_folder(paths: Sequence[Path]) -> Path:
    """Return the deepest folder that contains all paths. A single folder is returned as it is."""
    folders = [path if path.is_dir() else path.parent for path in paths or [RUNS]]
    if len(folders) == 1:
        return folders[0]
    common = Path(os.path.commonpath([folder.resolve() for folder in folders]))
    return common.relative_to(Path.cwd()) if common.is_relative_to(Path.cwd()) else common
