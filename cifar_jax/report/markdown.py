"""The tables as Markdown, for report.md and the README."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar, get_args

from cifar_jax import catalog
from cifar_jax.report.groups import Section, SeedGroup
from cifar_jax.report.recipes import Pair, Peer
from cifar_jax.report.study import Study
from cifar_jax.report.table import Row, row

T = TypeVar("T")
Columns = Mapping[str, Callable[[T], str]]
"""The columns of a table. Maps each heading to a function that returns the cell of a row. A heading
that ends with `:` marks a right-aligned column."""

_RESULTS: Columns[Row] = {
    "experiment": lambda r: r.experiment,
    "parameters:": lambda r: r.parameters,
    "paper, %:": lambda r: r.paper,
    "measured, %:": lambda r: _measured(r, "<br>", "–"),
    "difference:": lambda r: r.difference,
    "at best validation, %:": lambda r: r.best,
    "epochs:": lambda r: r.epochs,
    "wall time:": lambda r: r.wall_time,
    "device": lambda r: r.device,
}
_CHANGED: Columns[Row] = {
    "experiment": lambda r: r.experiment,
    "changes": lambda r: " ".join(f"`{change}`" for change in r.changes),
    **{k: v for k, v in _RESULTS.items() if k not in ("experiment", "paper, %:", "difference:")},
}
_README: Columns[Row] = {
    "experiment": lambda r: _linked(r.experiment),
    "parameters:": lambda r: r.parameters,
    "paper, %:": lambda r: r.paper,
    "measured, %:": lambda r: _measured(r),
    "difference:": lambda r: r.difference,
    "epochs:": lambda r: r.epochs,
    "wall time, s:": lambda r: "" if r.seconds is None else f"{r.seconds:,.0f}",
    "machine": lambda r: r.device,
    "commit": lambda r: _commits(r.commit),
}
_RECIPES: Columns[tuple[Row | None, Row]] = {
    "network": lambda p: p[1].model,
    "parameters:": lambda p: p[1].parameters,
    "paper, %:": lambda p: p[1].paper or "–",
    "the paper's recipe, %:": lambda p: _linked_measured(p[0]) if p[0] else "–",
    "better recipe, %:": lambda p: _linked_measured(p[1]),
    "minutes:": lambda p: _minutes(p[1].seconds),
    "machine": lambda p: p[1].device,
    "commit": lambda p: _commits(p[1].commit),
}


def page(groups: Sequence[SeedGroup], studies: Sequence[Study], figure: str | None) -> str:
    """Return the text of report.md. If `figure` is not None, the text includes this image file."""
    paper, better, variants, changed = (
        [row(group) for group in groups if group.section == section]
        for section in get_args(Section)
    )
    blocks = [
        "# Paper and measured",
        table(paper, _RESULTS),
        "Accuracy on the test images. “Measured” is after the last epoch: mean ± sample standard "
        "deviation over seeds. “At best validation” is at the best epoch by `train.best_by`, by "
        "default the validation accuracy. The test images never select an epoch. “Wall time” is "
        "the time of one run.",
    ]
    if better:
        blocks += [
            "## Better recipes",
            "Compared with the paper's best accuracy for the same network.",
            table(better, _RESULTS),
        ]
    if variants:
        blocks += [
            "## Variants of the paper's experiments",
            "Compared with the paper's accuracy of the experiment that is varied.",
            table(variants, _RESULTS),
        ]
    if changed:
        blocks += [
            "## With changed settings or images",
            "These runs differ from their experiment and are not compared with the paper.",
            table(changed, _CHANGED),
        ]
    if studies:
        blocks += ["## Studies", "\n".join(f"- {study.summary}" for study in studies)]
    if figure:
        blocks += ["## Curves", f"![Accuracy by epoch]({figure})"]
    return "\n\n".join(blocks) + "\n"


def readme(groups: Sequence[SeedGroup]) -> list[str]:
    """Return the README's blocks about the paper's experiments."""
    return [table([row(group) for group in groups], _README)]


def recipes(pairs: Sequence[Pair], peers: Sequence[Peer]) -> list[str]:
    """Return the README's blocks about better recipes and other people's code."""
    rows = [(p.faithful and row(p.faithful), row(p.better)) for p in pairs if p.better.results]
    missing = [_linked(pair.better.experiment) for pair in pairs if not pair.better.runs]
    others = [
        f"- {p.name} reaches {p.accuracy:.2f} % in {p.minutes:,g} min on {p.machine}. "
        f"{p.source} The command is `{p.command}`."
        for p in peers
    ]
    return [
        *([table(rows, _RECIPES)] if rows else []),
        *([f"No record yet: {', '.join(missing)}."] if missing else []),
        *(["Other people's code, for comparison:", "\n".join(others)] if others else []),
    ]


def table(rows: Sequence[T], columns: Columns[T]) -> str:
    """Return a Markdown table."""
    lines = [
        [name.removesuffix(":") for name in columns],
        ["---:" if name.endswith(":") else "---" for name in columns],
        *([_escaped(cell(r)) for cell in columns.values()] for r in rows),
    ]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _measured(r: Row, between: str = " ", empty: str = "no record yet") -> str:
    mean = f"**{r.measured}**" if r.measured else ""
    return between.join(filter(None, (mean, r.seeds, *r.unfinished))) or empty


def _linked_measured(r: Row) -> str:
    return f"{_linked(r.experiment)} {_measured(r)}"


def _linked(experiment: str) -> str:
    path = catalog.load(experiment).path.relative_to(catalog.experiments_folder())
    return f"[{experiment}](experiments/{path.as_posix()})"


def _minutes(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return f"{seconds / 60:.1f}" if seconds < 600 else f"{seconds / 60:,.0f}"


def _commits(commits: str) -> str:
    return " / ".join(f"`{commit}`" for commit in commits.split(" / ") if commit)


def _escaped(text: str) -> str:
    """Return `text` for a table cell: `|` is escaped, and line breaks become spaces."""
    return text.replace("|", "\\|").replace("\n", " ")
