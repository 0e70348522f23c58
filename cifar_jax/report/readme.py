"""The README's tables and their figure, made of the records in `results/`."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path

from cifar_jax.errors import UserError
from cifar_jax.report import markdown
from cifar_jax.report.table import Group, collect, settings_text
from cifar_jax.runs.files import write_bytes
from cifar_jax.runs.records import read_records

FIGURE = "curves.svg"
"""Beside the records."""
_BEGIN, _END = "<!-- results -->", "<!-- /results -->"


def update_readme(readme: Path, records: Path) -> tuple[bool, list[str]]:
    """Bring what is between `<!-- results -->` and `<!-- /results -->`, and the figure, up to date.

    Returns:
      Whether anything changed; and a line for each record that is not in the table.

    Raises:
      UserError: the README has no such place, a record cannot be read, or a file not be written.
    """
    from cifar_jax.report import plots

    text, updated, own, passed_over = _made(readme, records)
    drawn = _is_drawn(records / FIGURE, own)
    try:
        if not drawn:
            write_bytes(records / FIGURE, plots.panels_svg(own, _digest(own)))
        if updated != text:
            write_bytes(readme, updated.encode())
    except OSError as error:
        raise UserError(f"{error.filename} cannot be written: {error.strerror}") from None
    return updated != text or not drawn, passed_over


def readme_is_current(readme: Path, records: Path) -> bool:
    """Whether `update_readme` would change nothing.

    Raises:
      UserError: as `update_readme`.
    """
    text, updated, own, _ = _made(readme, records)
    return updated == text and _is_drawn(records / FIGURE, own)


def _is_drawn(figure: Path, groups: Sequence[Group]) -> bool:
    """Whether the figure shows what the records hold. How it comes out is left as it is: that may
    differ from one version of matplotlib to the next."""
    return figure.exists() and _digest(groups) in figure.read_text(encoding="utf-8")


def _digest(groups: Sequence[Group]) -> str:
    """Of what the figure shows."""
    shown = [
        [
            g.experiment,
            g.paper and g.paper.test_accuracy,
            g.measured(),
            [run.rows for run in g.runs],
        ]
        for g in groups
    ]
    text = json.dumps(shown, default=list, sort_keys=True)
    return f"made of records {hashlib.sha256(text.encode()).hexdigest()}"


def _made(readme: Path, records: Path) -> tuple[str, str, list[Group], list[str]]:
    """The README as it is and as it should be, the groups of its tables, and what is in neither."""
    try:
        text = readme.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{readme} cannot be read: {error.strerror}") from None
    place = re.compile(f"{_BEGIN}.*?{_END}", re.DOTALL)
    if len(place.findall(text)) != 1:
        raise UserError(f"{readme} has no one place between {_BEGIN} and {_END} for the table")
    groups = collect(read_records(records))
    own = [group for group in groups if group.paper]
    passed_over = _passed_over([group for group in groups if not group.paper])
    link = (records / FIGURE).relative_to(readme.parent).as_posix()
    parts = [*markdown.readme(own, link), *passed_over]
    return text, place.sub(lambda _: "\n\n".join([_BEGIN, *parts, _END]), text), own, passed_over


def _passed_over(groups: Sequence[Group]) -> list[str]:
    """A line for each record that is of other settings or images than its experiment's today."""
    return [
        f"`{run.path.name}` is not of {group.experiment} as it is today: "
        + (" ".join(f"`{change}`" for change in settings_text(group.changes)) or "no such file")
        for group in groups
        for run in group.runs
    ]
