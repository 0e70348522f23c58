"""The tables as GitHub-flavoured Markdown: the page report.md, and the README's table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from cifar_jax.report.table import Group, Row, row

if TYPE_CHECKING:
    from cifar_jax.report.plots import Figure

Columns = Mapping[str, Callable[[Row], str]]
"""Heading to cell; a heading that ends with `:` is of numbers."""

_RESULTS: Columns = {
    "experiment": lambda r: r.experiment,
    "parameters:": lambda r: r.parameters,
    "paper, %:": lambda r: r.paper,
    "measured, %:": lambda r: "<br>".join(filter(None, (_bold(r.measured), *r.runs))),
    "difference:": lambda r: r.difference,
    "at best validation, %:": lambda r: r.best,
    "epochs:": lambda r: r.epochs,
    "wall time:": lambda r: r.wall_time,
    "device": lambda r: r.device,
}
_OTHER: Columns = {
    "experiment": lambda r: r.experiment,
    "what differs": lambda r: " ".join(f"`{change}`" for change in r.changes),
    **{k: v for k, v in _RESULTS.items() if k not in ("experiment", "paper, %:", "difference:")},
}
_README: Columns = {
    "experiment": lambda r: f"[{r.experiment}](experiments/{r.experiment.replace('-', '_')}.py)",
    "model": lambda r: r.model,
    "parameters:": lambda r: r.parameters,
    "paper, %:": lambda r: r.paper,
    "measured, %:": lambda r: " ".join(filter(None, (_bold(r.measured), *r.runs))),
    "epochs:": lambda r: r.epochs,
    "wall time:": lambda r: r.wall_time,
    "device": lambda r: r.device,
    "commit": lambda r: " / ".join(f"`{c}`" for c in r.commit.split(" / ") if c),
}


def page(groups: Sequence[Group], figures: Sequence[Figure]) -> str:
    """What report.md holds: the tables, what they mean, and the curves."""
    own = [row(group) for group in groups if not group.changes]
    other = [row(group) for group in groups if group.changes]
    parts = [
        "# Paper against measured",
        table(own, _RESULTS),
        "Accuracy is on the test images. “Measured” is after the last epoch: the mean ± the sample "
        "standard deviation over the seeds. Beside it stands that after the epoch with the best "
        "validation accuracy. No epoch is chosen by the test images. Wall time is that of one run.",
    ]
    if other:
        parts += [
            "## With settings other than the experiment's",
            "These are not the paper's experiments, and are not to be compared with its figures.",
            table(other, _OTHER),
        ]
    if figures:
        parts += ["## Curves"]
        parts += [f"![{_text(figure.title)}](curves/{figure.name})" for figure in figures]
    return "\n\n".join(parts) + "\n"


def readme_table(groups: Sequence[Group]) -> str:
    """The README's table; rows without a record say so."""
    return table([row(group, missing="no record yet") for group in groups], _README)


def table(rows: Sequence[Row], columns: Columns) -> str:
    """`rows` as a Markdown table."""
    lines = [
        [name.removesuffix(":") for name in columns],
        ["---:" if name.endswith(":") else "---" for name in columns],
        *([_text(cell(r)) for cell in columns.values()] for r in rows),
    ]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _bold(text: str) -> str:
    return f"**{text}**" if text else ""


def _text(text: str) -> str:
    """`text` for a cell: a bar would end it, a line break the table."""
    return text.replace("|", "\\|").replace("\n", " ")
