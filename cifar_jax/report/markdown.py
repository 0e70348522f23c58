"""The tables as GitHub-flavoured Markdown: the page report.md, and the README's tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

from cifar_jax import catalog
from cifar_jax.report.groups import SeedGroup
from cifar_jax.report.recipes import Pair, Peer
from cifar_jax.report.table import Part, Row, parts, row

if TYPE_CHECKING:
    from cifar_jax.report.plots import Figure

T = TypeVar("T")
Columns = Mapping[str, Callable[[T], str]]
"""Heading to cell; a heading that ends with `:` is of numbers."""

_RESULTS: Columns[Row] = {
    "experiment": lambda r: r.experiment,
    "parameters:": lambda r: r.parameters,
    "paper, %:": lambda r: r.paper,
    "measured, %:": lambda r: "<br>".join(filter(None, (_bold(r.measured), r.seeds))) or "–",
    "difference:": lambda r: r.difference,
    "at best validation, %:": lambda r: r.best,
    "epochs:": lambda r: r.epochs,
    "wall time:": lambda r: r.wall_time,
    "device": lambda r: r.device,
}
_OTHER: Columns[Row] = {
    "experiment": lambda r: r.experiment,
    "what differs": lambda r: " ".join(f"`{change}`" for change in r.changes),
    **{k: v for k, v in _RESULTS.items() if k not in ("experiment", "paper, %:", "difference:")},
    "measured, %:": lambda r: "<br>".join(
        filter(None, (_bold(r.measured), r.seeds, *r.unfinished))
    ),
}
_README: Columns[Row] = {
    "experiment": lambda r: _linked(r.experiment),
    "parameters:": lambda r: r.parameters,
    "paper, %:": lambda r: r.paper,
    "measured, %:": lambda r: _measured(r),
    "difference:": lambda r: r.difference,
    "epochs:": lambda r: r.epochs,
    "wall time, s:": lambda r: _seconds(r.seconds),
    "machine": lambda r: r.device,
    "commit": lambda r: _commits(r.commit),
}
_RECIPES: Columns[tuple[Row | None, Row]] = {
    "network": lambda p: p[1].model,
    "parameters:": lambda p: p[1].parameters,
    "paper, %:": lambda p: p[1].paper or "–",
    "the paper's recipe, %:": lambda p: _named(p[0]) if p[0] else "–",
    "in minutes:": lambda p: _minutes(p[0].seconds) if p[0] else "–",
    "better recipe, %:": lambda p: _named(p[1]),
    "minutes:": lambda p: _minutes(p[1].seconds),
    "machine": lambda p: p[1].device,
    "commit": lambda p: _commits(p[1].commit),
}
_PARTS: Columns[Part] = {
    "experiment": lambda p: p.experiment,
    "seed:": lambda p: p.seed,
    "so far": lambda p: p.progress,
    "wall time, s:": lambda p: _seconds(p.seconds),
    "machine": lambda p: p.device,
    "commit": lambda p: _commits(p.commit),
}


def page(groups: Sequence[SeedGroup], figures: Sequence[Figure]) -> str:
    """What report.md holds: the tables, what they mean, and the figures."""
    own = [group for group in groups if not group.changes and not group.better]
    better = [group for group in groups if group.better]
    other = [row(group) for group in groups if group.changes]
    blocks = [
        "# Paper against measured",
        table([row(group) for group in own], _RESULTS),
        "Accuracy is on the test images. “Measured” is after the last epoch: the mean ± the sample "
        "standard deviation over the seeds. Beside it stands that after the epoch with the best "
        "validation accuracy. No epoch is chosen by the test images. Wall time is that of one run.",
        *_in_part([*own, *better], "## Unfinished"),
    ]
    if better:
        blocks[3:3] = [
            "## Better recipes",
            "Beside each stands the paper's best accuracy with the same network.",
            table([row(group) for group in better], _RESULTS),
        ]
    if other:
        blocks += [
            "## With other settings or images than the experiment's",
            "These are not the experiments, and are not to be compared with the paper's figures.",
            table(other, _OTHER),
        ]
    if figures:
        blocks += ["## Figures"]
        blocks += [f"![{_text(figure.title)}](curves/{figure.name})" for figure in figures]
    return "\n\n".join(blocks) + "\n"


def readme(groups: Sequence[SeedGroup], figure: str) -> list[str]:
    """The README's blocks: the table, in which rows without a record say so, the runs in part, and
    the curves, in the file `figure`."""
    return [
        table([row(group) for group in groups], _README),
        *_in_part(groups, "Runs in part, of which nothing is a result yet:"),
        f"![Accuracy by epoch of each experiment, and the paper's]({figure})",
    ]


def recipes(pairs: Sequence[Pair], peers: Sequence[Peer], figure: str) -> list[str]:
    """The README's blocks on the better recipes: the table, of those with a finished run, the runs
    in part, which recipes have no record, what others reach, and all in the file `figure`."""
    groups = [pair.better for pair in pairs]
    rows = [(p.faithful and row(p.faithful), row(p.better)) for p in pairs if p.better.results]
    absent = [_linked(group.experiment) for group in groups if not group.runs]
    others = [
        f"- {p.name}: {p.accuracy:.2f} % in {p.minutes:,g} min on {p.machine} ({p.source}; "
        f"by `{p.command}`)"
        for p in peers
    ]
    return [
        *([table(rows, _RECIPES)] if rows else []),
        *_in_part(groups, "Runs in part, of which nothing is a result yet:"),
        *([f"No record yet of {', '.join(absent)}."] if absent else []),
        *(["Measured beside them, of others' code:", "\n".join(others)] if others else []),
        f"![Test accuracy against wall time, of the paper's recipes and better ones]({figure})",
    ]


def _in_part(groups: Sequence[SeedGroup], heading: str) -> list[str]:
    unfinished = [part for group in groups for part in parts(group)]
    return [heading, table(unfinished, _PARTS)] if unfinished else []


def table(rows: Sequence[T], columns: Columns[T]) -> str:
    """`rows` as a Markdown table."""
    lines = [
        [name.removesuffix(":") for name in columns],
        ["---:" if name.endswith(":") else "---" for name in columns],
        *([_text(cell(r)) for cell in columns.values()] for r in rows),
    ]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _bold(text: str) -> str:
    return f"**{text}**" if text else ""


def _measured(r: Row) -> str:
    measured = " ".join(filter(None, (_bold(r.measured), r.seeds)))
    return measured or ("in part" if r.unfinished else "no record yet")


def _named(r: Row) -> str:
    return f"{_linked(r.experiment)} {_measured(r)}"


def _linked(experiment: str) -> str:
    path = catalog.load(experiment).path.relative_to(catalog.experiments_folder())
    return f"[{experiment}](experiments/{path.as_posix()})"


def _seconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds:,.0f}"


def _minutes(seconds: float | None) -> str:
    """To a tenth where that is more than rounding."""
    if seconds is None:
        return ""
    return f"{seconds / 60:.1f}" if seconds < 600 else f"{seconds / 60:,.0f}"


def _commits(commits: str) -> str:
    return " / ".join(f"`{commit}`" for commit in commits.split(" / ") if commit)


def _text(text: str) -> str:
    """`text` for a cell: a bar would end it, a line break the table."""
    return text.replace("|", "\\|").replace("\n", " ")
