"""Generate the README's tables and figures from the records in `results/`."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cifar_jax.errors import UserError
from cifar_jax.files import write_bytes
from cifar_jax.report import markdown, recipes
from cifar_jax.report.groups import SeedGroup, collect, settings_text
from cifar_jax.report.table import wall_seconds
from cifar_jax.runs.records import read_records
from cifar_jax.runs.run import experiments
from cifar_jax.runs.schemas import dump


class _Readme(NamedTuple):
    text: str
    """Current text of the README."""
    updated: str
    """Text of the README with tables from the current records."""
    figures: dict[Path, Callable[[str], bytes]]
    """Maps the path of each figure to a function. The function takes `description` and returns the
    content of the SVG file."""
    description: str
    """Digest of the results, as text. A figure that does not contain this text is outdated."""
    left_out: list[str]
    """One line for each record that is not in the tables."""

    def outdated(self) -> list[Path]:
        """Return the figures that are missing or do not show the current records.

        The drawings are not compared, because they depend on the version of matplotlib.
        """
        return [
            path
            for path in self.figures
            if not path.exists() or self.description not in path.read_text(encoding="utf-8")
        ]


def update_readme(readme: Path, records: Path) -> tuple[bool, list[str]]:
    """Update the README's tables and its two figures.

    The table of the paper's experiments replaces the text between `<!-- results -->` and
    `<!-- /results -->`. The table of better recipes replaces the text between `<!-- recipes -->`
    and `<!-- /recipes -->`.

    Returns:
      Whether anything changed, and one line for each record that is not in the tables.

    Raises:
      UserError: a marker is missing, or a record cannot be read.
    """
    new = _generate(readme, records)
    redraw = new.outdated()
    for path in redraw:
        write_bytes(path, new.figures[path](new.description))
    if new.updated != new.text:
        write_bytes(readme, new.updated.encode())
    return bool(redraw) or new.updated != new.text, new.left_out


def readme_is_current(readme: Path, records: Path) -> bool:
    """Return whether `update_readme` would change nothing.

    Raises:
      UserError: a marker is missing, or a record cannot be read.
    """
    new = _generate(readme, records)
    return new.updated == new.text and not new.outdated()


def _generate(readme: Path, records: Path) -> _Readme:
    text = readme.read_text(encoding="utf-8")
    groups = collect(read_records(records))
    paper = [group for group in groups if group.paper]
    better = [group for group in groups if group.is_better_recipe]
    left_out = [line for group in groups for line in _left_out(group)]
    recorded = {group.experiment for group in better}
    better += [
        SeedGroup(name, {}, ())
        for name, config in experiments().items()
        if not config.paper and not config.varies and name not in recorded
    ]
    pairs = recipes.pairs([*paper, *better])
    peers = recipes.read_peers(records / "peers.json")
    updated = replace_blocks(readme, text, "results", [*markdown.readme(paper), *left_out])
    updated = replace_blocks(readme, updated, "recipes", markdown.recipes(pairs, peers))

    def curves(description: str) -> bytes:
        from cifar_jax.report import plots

        return plots.svg(paper, description)

    def minutes(description: str) -> bytes:
        from cifar_jax.report import minutes, plots

        measured = minutes.points([*paper, *better], peers)
        return plots.render(lambda: minutes.draw(measured), description)

    figures = {records / "curves.svg": curves, records / "minutes.svg": minutes}
    return _Readme(text, updated, figures, _description([*paper, *better], peers), left_out)


def replace_blocks(page: Path, text: str, name: str, blocks: Sequence[str]) -> str:
    """Return `text` with `blocks` between the markers `<!-- name -->` and `<!-- /name -->`."""
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    section = re.compile(f"{begin}.*?{end}", re.DOTALL)
    if not (text.count(begin) == text.count(end) == 1 and section.search(text)):
        raise UserError(
            f"{page} must contain the lines {begin} and {end} exactly once: the table is written "
            "between them"
        )
    return section.sub(lambda _: "\n\n".join([begin, *blocks, end]), text)


def _description(groups: Sequence[SeedGroup], peers: Sequence[recipes.Peer]) -> str:
    shown: list[Any] = [
        [
            group.experiment,
            group.paper and group.paper.test_accuracy,
            group.measured(),
            [[dump(row) for row in run.rows] for run in group.runs],
            wall_seconds(group),
        ]
        for group in groups
    ]
    shown += [dump(peer) for peer in peers]
    digest = hashlib.sha256(json.dumps(shown, sort_keys=True).encode()).hexdigest()
    return f"generated from records {digest}"


def _left_out(group: SeedGroup) -> list[str]:
    """Return one line for each record of a group that is not in the tables."""
    if group.config and not group.changes:
        return []
    changes = " ".join(f"`{change}`" for change in settings_text(group.changes))
    why = f"differs from the current {group.experiment}: {changes}"
    if group.config is None:
        why = f"is of {group.experiment}, which is not an experiment of this package"
    return [f"`{run.path.name}` {why}" for run in group.runs]
