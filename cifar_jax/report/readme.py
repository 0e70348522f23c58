"""The README's tables and their figures, made of the records in `results/`."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from cifar_jax.errors import UserError
from cifar_jax.files import write_bytes
from cifar_jax.report import markdown, recipes
from cifar_jax.report.groups import SeedGroup, collect, settings_text
from cifar_jax.runs.records import read_records
from cifar_jax.runs.run import experiments

CURVES, WALL_TIME = "curves.svg", "recipes.svg"
"""Beside the records."""


class _Made(NamedTuple):
    """What the records make of a README."""

    text: str
    """As it is."""
    updated: str
    """As it should be."""
    figures: dict[Path, tuple[str, Callable[[str], bytes]]]
    """Of each file the digest of what it shows, and what draws it and writes that down in it."""
    passed_over: list[str]
    """A line for each record that is not in the tables."""

    def undrawn(self) -> list[Path]:
        """The figures that do not show what the records hold. How one comes out is left as it is:
        that may differ from one version of matplotlib to the next."""
        return [
            path
            for path, (digest, _) in self.figures.items()
            if not path.exists() or digest not in path.read_text(encoding="utf-8")
        ]


def update_readme(readme: Path, records: Path) -> tuple[bool, list[str]]:
    """Bring the figures up to date, and what is between `<!-- results -->` and `<!-- /results -->`
    (the paper's experiments), and `<!-- recipes -->` and `<!-- /recipes -->` (better recipes).

    Returns:
      Whether anything changed; and a line for each record that is not in the tables.

    Raises:
      UserError: the README has no such place, a record cannot be read, or a file not be written.
    """
    made = _made(readme, records)
    undrawn = made.undrawn()
    try:
        for path in undrawn:
            digest, draw = made.figures[path]
            write_bytes(path, draw(digest))
        if made.updated != made.text:
            write_bytes(readme, made.updated.encode())
    except OSError as error:
        raise UserError(f"{error.filename} cannot be written: {error.strerror}") from None
    return bool(undrawn) or made.updated != made.text, made.passed_over


def readme_is_current(readme: Path, records: Path) -> bool:
    """Whether `update_readme` would change nothing.

    Raises:
      UserError: as `update_readme`.
    """
    made = _made(readme, records)
    return made.updated == made.text and not made.undrawn()


def _made(readme: Path, records: Path) -> _Made:
    try:
        text = readme.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{readme} cannot be read: {error.strerror}") from None
    groups = collect(read_records(records))
    own = [group for group in groups if group.paper]
    better = [group for group in groups if group.better]
    passed_over = _passed_over([g for g in groups if not (g.paper or g.better)])
    run = {group.experiment for group in better}
    better += [
        SeedGroup(name, {}, ())
        for name, config in experiments().items()
        if not (config.paper or name in run)
    ]
    pairs = recipes.pairs([*own, *better])
    peers = recipes.read_peers(records / recipes.PEERS)
    folder = records.relative_to(readme.parent)
    of_paper = [*markdown.readme(own, (folder / CURVES).as_posix()), *passed_over]
    of_recipes = markdown.recipes(pairs, peers, (folder / WALL_TIME).as_posix())
    updated = _filled(readme, _filled(readme, text, "results", of_paper), "recipes", of_recipes)
    points = recipes.points([*own, *better], peers)
    figures = {
        records / CURVES: (_digest(_curves(own)), partial(_draw_curves, own)),
        records / WALL_TIME: (
            _digest([points, recipes.papers_accuracies()]),
            partial(_draw_wall_time, points),
        ),
    }
    return _Made(text, updated, figures, passed_over)


def _filled(readme: Path, text: str, name: str, blocks: Sequence[str]) -> str:
    """`text` with `blocks` in the place of that name."""
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    place = re.compile(f"{begin}.*?{end}", re.DOTALL)
    if len(place.findall(text)) != 1:
        raise UserError(f"{readme} has no one place between {begin} and {end} for the table")
    return place.sub(lambda _: "\n\n".join([begin, *blocks, end]), text)


def _curves(groups: Sequence[SeedGroup]) -> Any:
    """What the figure of curves shows."""
    return [
        [g.experiment, g.paper and g.paper.test_accuracy, g.measured(), [r.rows for r in g.runs]]
        for g in groups
    ]


def _draw_curves(groups: Sequence[SeedGroup], description: str) -> bytes:
    from cifar_jax.report import plots

    return plots.panels_svg(groups, description)


def _draw_wall_time(points: Sequence[recipes.Point], description: str) -> bytes:
    from cifar_jax.report import wall_time

    return wall_time.svg(points, description)


def _digest(shown: Any) -> str:
    text = json.dumps(shown, default=list, sort_keys=True)
    return f"made of records {hashlib.sha256(text.encode()).hexdigest()}"


def _passed_over(groups: Sequence[SeedGroup]) -> list[str]:
    """A line for each record that is of other settings or images than its experiment's today."""
    return [
        f"`{run.path.name}` is not of {group.experiment} as it is today: "
        + (" ".join(f"`{change}`" for change in settings_text(group.changes)) or "no such file")
        for group in groups
        for run in group.runs
    ]
