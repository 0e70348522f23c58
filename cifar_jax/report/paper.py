"""The tables of docs/paper.md: a verdict for each experiment and each conclusion of the paper."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from cifar_jax import catalog, config
from cifar_jax.config import as_text
from cifar_jax.files import write_bytes
from cifar_jax.report import markdown
from cifar_jax.report.claims import Judgment, judge
from cifar_jax.report.groups import SeedGroup, collect
from cifar_jax.report.markdown import Columns
from cifar_jax.report.readme import replace_blocks
from cifar_jax.report.table import mean_std, signed
from cifar_jax.runs.records import read_records
from cifar_jax.runs.run import experiments

TOLERANCE = 1.0
"""Largest difference from the paper, in points, that counts as a reproduction."""
_TEST_IMAGES = 10_000
_NORMAL = 1.96
"""Half-width of the 95 % interval of a normal distribution, in standard deviations."""

_EXPERIMENTS: Columns[SeedGroup] = {
    "experiment": lambda g: _linked(g.experiment),
    "paper, %:": lambda g: f"{g.paper.test_accuracy:.2f}" if g.paper else "",
    "measured, %:": lambda g: mean_std(g.measured()),
    "seeds:": lambda g: str(len(g.measured()) or ""),
    "difference:": lambda g: _signed(difference(g)),
    "95 % interval": lambda g: _between(interval(g)),
    "verdict": lambda g: f"**{verdict(g)}**",
}
_CLAIMS: Columns[Judgment] = {
    "": lambda j: str(j.number),
    "conclusion": lambda j: j.claim.sentence,
    "from": lambda j: f"`{j.claim.baseline}`",
    "to": lambda j: f"`{j.claim.variant}`",
    "paper:": lambda j: claim_cells(j)[0],
    "seeds:": lambda j: claim_cells(j)[1],
    "measured:": lambda j: claim_cells(j)[2],
    "95 % interval": lambda j: claim_cells(j)[3],
    "p:": lambda j: claim_cells(j)[4],
    "verdict": lambda j: f"**{j.verdict}**",
}
_VARIANTS: Columns[SeedGroup] = {
    "variant": lambda g: _linked(g.experiment),
    "changes": lambda g: _changed_settings(g.experiment),
    "paper, %:": lambda g: f"{g.reference.test_accuracy:.2f}" if g.reference else "",
    "measured, %:": lambda g: mean_std(g.measured()) or "not run",
    "difference:": lambda g: _signed(difference(g)),
}


def update_page(page: Path, records: Path) -> bool:
    """Update the tables of docs/paper.md from records. Return whether anything changed.

    The page has markers such as `<!-- experiments -->` and `<!-- /experiments -->`.

    Raises:
      UserError: a marker is missing, or a record cannot be read.
    """
    text = page.read_text(encoding="utf-8")
    updated = _generate(page, text, records)
    if updated != text:
        write_bytes(page, updated.encode())
    return updated != text


def page_is_current(page: Path, records: Path) -> bool:
    """Return whether `update_page` would change nothing."""
    text = page.read_text(encoding="utf-8")
    return _generate(page, text, records) == text


def difference(group: SeedGroup) -> float | None:
    """Return the mean test accuracy minus the paper's accuracy, in points."""
    if not group.measured() or group.reference is None:
        return None
    return statistics.fmean(group.measured()) - group.reference.test_accuracy


def interval(group: SeedGroup) -> tuple[float, float] | None:
    """Return the 95 % interval of the difference from the paper, in points.

    The interval includes the uncertainty of the paper's single run and of our runs. The standard
    deviation of a run is the larger of two values: the sampling error of the test images, and the
    standard deviation over the seeds.
    """
    values, center = group.measured(), difference(group)
    if center is None:
        return None
    accuracy = statistics.fmean(values)
    finite = math.sqrt(accuracy * (100 - accuracy) / _TEST_IMAGES)
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    half = _NORMAL * max(finite, spread) * math.sqrt(1 + 1 / len(values))
    return center - half, center + half


def verdict(group: SeedGroup) -> str:
    """Return whether the paper's accuracy is reproduced.

    “Holds” means a difference of at most one point. “Does not hold” means that the difference is
    larger than one point in the whole 95 % interval.
    """
    center, ends = difference(group), interval(group)
    if center is None or ends is None:
        return "not tested"
    if abs(center) <= TOLERANCE:
        return "holds"
    return "does not hold" if ends[0] > TOLERANCE or ends[1] < -TOLERANCE else "undecided"


def claim_cells(judgment: Judgment) -> tuple[str, str, str, str, str]:
    """Return the cells of the columns paper, seeds, measured, 95 % interval and p.

    The cell of an unknown value is empty. The paper's difference is `–` if the paper states only
    one of the two accuracies.
    """
    low, high, p = judgment.low, judgment.high, judgment.p_value
    interval = "" if judgment.test_error is None else f"SE {judgment.test_error:.2f}"
    if low is not None and high is not None:
        interval = f"{signed(low)} to {signed(high)}"
    paper = judgment.claim.paper_difference
    return (
        "–" if paper is None else signed(paper),
        str(len(judgment.seeds) or ""),
        "" if judgment.difference is None else signed(judgment.difference),
        interval if judgment.seeds else "",
        "" if p is None else f"{p:.3f}" if p >= 0.001 else "<0.001",
    )


def _generate(page: Path, text: str, records: Path) -> str:
    groups = collect(read_records(records))
    paper = [group for group in groups if group.paper]
    claims = judge([group for group in groups if not group.changes])
    recorded = {group.experiment: group for group in groups if group.section == "variants"}
    variants = [
        recorded.get(name, SeedGroup(name, {}, ()))
        for name, experiment in experiments().items()
        if experiment.varies
    ]
    tables = {
        "experiments": [count_verdicts(map(verdict, paper)), markdown.table(paper, _EXPERIMENTS)],
        "claims": [count_verdicts(j.verdict for j in claims), markdown.table(claims, _CLAIMS)],
        "variants": [markdown.table(variants, _VARIANTS)],
    }
    for name, blocks in tables.items():
        text = replace_blocks(page, text, name, blocks)
    return text


def count_verdicts(verdicts: Iterable[str]) -> str:
    """Return how often each verdict occurs, the most frequent first.

    >>> count_verdicts(["holds", "not tested", "holds"])
    'Verdicts: 2 × holds, 1 × not tested.'
    """
    counts = Counter(verdicts).most_common()
    return f"Verdicts: {', '.join(f'{number} × {verdict}' for verdict, number in counts)}."


def _changed_settings(experiment: str) -> str:
    """Return the settings that differ between a variant and its original experiment."""
    changed = experiments()[experiment]
    assert changed.varies
    base = config.identity(experiments()[changed.varies])
    differing = config.differences(base, config.identity(changed))
    return " ".join(f"`{name}={as_text(value)}`" for name, (_, value) in differing.items())


def _linked(experiment: str) -> str:
    path = catalog.load(experiment).path.relative_to(catalog.experiments_folder())
    return f"[{experiment}](../experiments/{path.as_posix()})"


def _signed(value: float | None) -> str:
    return "" if value is None else signed(value)


def _between(ends: tuple[float, float] | None) -> str:
    return f"{signed(ends[0])} to {signed(ends[1])}" if ends else ""
