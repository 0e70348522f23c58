"""Test the conclusions of the paper on pairs of runs. JAX is not imported.

A claim compares two experiments over the same seeds with a paired t-test. With three seeds, the
sign-flip test of `compare` cannot reach p < 0.05, because it does not assume a distribution. The
t-test assumes that the differences between the pairs are normally distributed.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from cifar_jax.errors import UserError
from cifar_jax.report.compare import LEVEL, by_seed, compare, holm, repeated_seeds, title
from cifar_jax.report.groups import SeedGroup, settings_text
from cifar_jax.report.table import progress
from cifar_jax.runs.run import RunRecord, experiments

Verdict = Literal[
    "holds",
    "does not hold",
    "undecided",
    "undecided: one seed",
    "unfinished",
    "not tested",
    "refused",
]


class Claim(NamedTuple):
    """A conclusion of the paper about the test accuracies of two experiments."""

    sentence: str
    """The conclusion. “Help” means that the accuracy increases, “hurt” that it decreases."""
    baseline: str
    """Experiment without the change that the claim is about."""
    variant: str
    """Experiment with the change."""
    differs: tuple[str, ...]
    """Settings that the paper changes from the baseline to the variant. No others may differ."""
    effect: Literal["increase", "decrease"] = "increase"
    """Whether the variant is claimed to have a higher or a lower accuracy than the baseline."""
    margin: float = 0.0
    """Percentage points of accuracy that the variant may lose although `effect` is `increase`.
    For “cost at most 2 points”, the margin is the loss in the paper, rounded up."""

    @property
    def paper(self) -> tuple[float | None, float | None]:
        """The paper's test accuracies of baseline and variant, in percent. None: not stated."""
        papers = (experiments()[name].paper for name in (self.baseline, self.variant))
        baseline, variant = (paper and paper.test_accuracy for paper in papers)
        return baseline, variant

    @property
    def paper_difference(self) -> float | None:
        """Difference of the accuracies in `paper`, variant minus baseline, in percentage points."""
        baseline, variant = self.paper
        return None if baseline is None or variant is None else variant - baseline


CLAIMS = (
    # Section 3.2
    Claim("More and smaller kernels help", "basic", "net", ("model.name", "epochs")),
    # Section 3.3
    Claim(
        *("BatchNorm, pooling and dropout help", "net", "net-bn-gap"),
        ("model.name", "model.dropout", "epochs"),
    ),
    # Section 3.4
    Claim(
        *("Attention with a plateau schedule hurts", "net-bn-gap", "net-attention"),
        ("model.name", "schedule.name"),
        effect="decrease",
    ),
    # Section 3.5(1). The paper does not state the accuracy of the baseline.
    Claim(
        "Dropout and weight decay help ResNet18",
        *("resnet18-sgd-no-dropout-no-decay", "resnet18-sgd"),
        ("model.dropout", "optimizer.weight_decay"),
    ),
    # Section 3.5(2): "Adam needs different hyperparameters from SGD."
    Claim(
        *("Adam hurts with the learning rate of SGD", "resnet18-sgd", "resnet18-adam"),
        ("optimizer.name", "optimizer.weight_decay"),
        effect="decrease",
    ),
    # Section 3.5(3). The paper also changes the number of epochs, from 135 to 100.
    Claim(
        *("A lower rate and a larger batch help Adam", "resnet18-adam", "resnet18-adam-lr1e-4"),
        ("optimizer.lr", "batch_size", "epochs"),
    ),
    # Section 3.5(4). The paper also changes the number of epochs, from 100 to 135.
    Claim(
        *("Half the blocks cost at most 2 points", "resnet18-adam-lr1e-4", "resnet10"),
        ("model.name", "epochs"),
        margin=2.0,  # Tables 18 and 20: 1.24 points
    ),
    # Section 3.5(5)
    Claim("The plateau schedule helps", "resnet10", "resnet10-plateau", ("schedule.name",)),
    # Section 3.5(6). The paper also drops the plateau schedule, which Table 24 does not list.
    Claim(
        "Separable convolutions cost at most 2 points",
        *("resnet10-plateau", "resnet10-separable"),
        ("model.name", "schedule.name"),
        margin=2.0,  # Tables 22 and 25: 1.41 points
    ),
)


class Judgment(NamedTuple):
    """What the runs say about a claim. Differences are in percentage points."""

    number: int
    """Number of the claim, counted from 1."""
    claim: Claim
    verdict: Verdict
    seeds: tuple[int, ...] = ()
    """Seeds that are finished in both experiments."""
    difference: float | None = None
    """Mean accuracy of the variant minus the mean accuracy of the baseline."""
    low: float | None = None
    """Lower end of the 95 % t interval of `difference`. None for fewer than two seeds."""
    high: float | None = None
    """Upper end of the 95 % t interval of `difference`. None for fewer than two seeds."""
    p_value: float | None = None
    """Two-sided p-value of the paired t-test, corrected with Holm's method for all claims."""
    test_error: float | None = None
    """Standard error of `difference` from the choice of the test images. None: no outputs."""
    changed: bool = False
    """Whether the runs have changed settings, with the same values in both experiments."""
    notes: tuple[str, ...] = ()
    """Sentences about unfinished runs, changed settings, or runs that cannot be compared."""

    @property
    def needs_runs(self) -> bool:
        """Whether more runs can decide the claim."""
        return self.verdict not in ("holds", "does not hold", "refused")

    @property
    def more_seeds(self) -> int | None:
        """Number of seeds to train. None: the default. An undecided claim needs twice its seeds.

        `--train` trains unchanged experiments, so the seeds of changed runs do not count.
        """
        return 2 * len(self.seeds) if self.verdict == "undecided" and not self.changed else None


def judge(groups: Sequence[SeedGroup], claims: Sequence[Claim] = CLAIMS) -> list[Judgment]:
    """Return what the runs say about each claim.

    Args:
      groups: groups of runs, as `report.collect` returns them.
      claims: the claims.
    """
    judgments = [_judge(number, claim, groups) for number, claim in enumerate(claims, start=1)]
    # Untested claims have p = 1. Holm's method therefore always corrects for all claims.
    corrected = holm({j.claim.sentence: 1.0 if j.p_value is None else j.p_value for j in judgments})
    return [_decide(j, corrected[j.claim.sentence]) for j in judgments]


def t_test(differences: Sequence[float], expected: float) -> tuple[float, float, float] | None:
    """Test whether the mean of at least two paired differences equals `expected`.

    If `expected` is 0, the test equals `scipy.stats.ttest_rel`.

    Returns:
      Both ends of the 95 % interval of the mean, and the p-value. None if all differences are
      equal, because the t-test needs a standard deviation above zero.
    """
    from scipy import stats

    if max(differences) - min(differences) < 1e-9:
        return None
    result: Any = stats.ttest_1samp(differences, expected)
    interval = result.confidence_interval(1 - LEVEL)
    return float(interval.low), float(interval.high), float(result.pvalue)


def finished_seeds(groups: Iterable[SeedGroup], experiment: str) -> set[int]:
    """Return the seeds for which an experiment with unchanged settings has a finished run."""
    unchanged = [g for g in groups if g.experiment == experiment and not g.changes]
    return {seed for group in unchanged for seed in by_seed(group)}


def _judge(number: int, claim: Claim, groups: Sequence[SeedGroup]) -> Judgment:
    """Compare the runs of a claim. The p-value is not corrected, and no verdict is final."""
    try:
        pair = _find_pair(claim, groups)
        names = (claim.baseline, claim.variant)
        shown = pair or [g for g in groups if g.experiment in names and not g.changes]
        notes = tuple(f"{title(g)} seed {r.seed}: {progress(r)}." for g in shown for r in _open(g))
        if pair is None:
            return Judgment(number, claim, "unfinished" if notes else "not tested", notes=notes)
        a, b = pair
        if changes := {**a.changes, **b.changes}:
            notes += (f"The runs have changed settings: {' '.join(settings_text(changes))}.",)
        if not by_seed(a).keys() & by_seed(b).keys():
            state: Verdict = "unfinished" if any(map(_open, pair)) else "not tested"
            notes = notes or ("No seed is finished in both experiments.",)
            return Judgment(number, claim, state, notes=notes, changed=bool(changes))
        result = compare(a, b)
        notes += repeated_seeds(a, result.seeds) + repeated_seeds(b, result.seeds)
    except UserError as error:
        return Judgment(number, claim, "refused", notes=(f"{error}.",))
    judgment = Judgment(
        number,
        claim,
        "undecided: one seed",
        result.seeds,
        result.difference,
        test_error=result.test_error,
        changed=bool(changes),
        notes=notes,
    )
    if len(result.seeds) == 1:
        return judgment
    differences = [y - x for x, y in zip(result.a, result.b, strict=True)]
    if test := t_test(differences, -claim.margin):
        low, high, p_value = test
        return judgment._replace(verdict="undecided", low=low, high=high, p_value=p_value)
    notes += ("All seeds have the same difference, so the t-test cannot be computed.",)
    return judgment._replace(verdict="undecided", notes=notes)


def _decide(judgment: Judgment, corrected: float) -> Judgment:
    """Return a judgment with the corrected p-value. If it is below 0.05, decide the verdict."""
    if judgment.p_value is None or judgment.difference is None:
        return judgment
    verdict: Verdict = "undecided"
    if corrected < LEVEL:
        increased = judgment.difference > -judgment.claim.margin
        holds = increased == (judgment.claim.effect == "increase")
        verdict = "holds" if holds else "does not hold"
    return judgment._replace(p_value=corrected, verdict=verdict)


def _find_pair(claim: Claim, groups: Sequence[SeedGroup]) -> tuple[SeedGroup, SeedGroup] | None:
    """Return the runs of baseline and variant, or None if an experiment has no runs.

    Raises:
      UserError: the runs differ in a setting that the claim does not allow, or the claim can be
        tested with several different settings.
    """
    a, b = (
        [g for g in groups if g.experiment == name and g.runs]
        for name in (claim.baseline, claim.variant)
    )
    if not a or not b:
        return None
    alike = [(x, y) for x in a for y in b if not _different_changes(x, y)]
    if not alike:
        x, y = a[0], b[0]
        raise UserError(
            f"the runs of {title(x)} and {title(y)} have different changes of "
            f"{_different_changes(x, y)[0]}: train both without --set"
        )
    x, y = alike[0]
    if len(alike) > 1 and (x.changes or y.changes):  # Groups without changes come first.
        listing = "; ".join(f"{title(x)} and {title(y)}" for x, y in alike)
        raise UserError(f"several settings fit the claim: {listing}")
    first, second = x.runs[0].identity, y.runs[0].identity
    for name in sorted(first.keys() | second.keys()):
        if first.get(name) != second.get(name) and name not in claim.differs:
            raise UserError(
                f"the runs of {title(x)} and {title(y)} differ in {name}, which the claim does not "
                "allow"
            )
    return x, y


def _different_changes(a: SeedGroup, b: SeedGroup) -> list[str]:
    """Return the names of changed settings that have different values in two groups.

    A changed setting may have the same value as in the file of the other experiment.
    """
    values_a, values_b = ({**group.runs[0].identity, **group.changes} for group in (a, b))
    names = {**a.changes, **b.changes}
    return [name for name in names if values_a.get(name) != values_b.get(name)]


def _open(group: SeedGroup) -> list[RunRecord]:
    """Return the unfinished runs of seeds that have no finished run."""
    finished = by_seed(group)
    return [run for run in group.unfinished if run.seed not in finished]


def command(numbers: Sequence[int], seeds: int | None = None, folders: Sequence[Path] = ()) -> str:
    """Return the command that trains the missing runs of claims.

    Args:
      numbers: numbers of the claims.
      seeds: number of seeds. None: the default.
      folders: folders with finished runs. Empty: the default.
    """
    chosen = numbers if len(numbers) < len(CLAIMS) else ()
    flags = [word for number in chosen for word in ("--claim", str(number))]
    more = ["--seeds", str(seeds)] if seeds else []
    return shlex.join(["cifar-jax", "claims", *map(str, folders), "--train", *flags, *more])
