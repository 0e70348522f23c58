"""Compare the accuracy of two groups of runs, paired by seed. JAX is not imported."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from cifar_jax.config import as_text
from cifar_jax.errors import UserError, counted, nearest
from cifar_jax.files import local_path
from cifar_jax.report.groups import SeedGroup, collect, settings_text
from cifar_jax.runs.outputs import read_outputs
from cifar_jax.runs.reading import read_runs
from cifar_jax.runs.run import RunRecord, experiments

if TYPE_CHECKING:
    import numpy as np

    from cifar_jax.runs.schemas import Result

LEVEL = 0.05
"""Significance level of a verdict. The intervals have the confidence level `1 - LEVEL`."""

MIN_SEEDS = 6
"""Smallest number of pairs for which the sign-flip test can reach p < 0.05: 2 / 2**6 = 0.031."""

_EXACT_PAIRS = 14
"""Largest number of pairs for which the test tries all sign flips. With more pairs, the sign flips
are random samples."""
_SAMPLES = 100_000
"""Number of random samples of the sign-flip test. The bootstrap draws a tenth of this number."""


class Spread(NamedTuple):
    """Standard deviations of the test accuracy over the seeds, in percentage points.

    On average over test sets of n images, total² = test_set² + training² * (n - 1) / n.

    Source: Jordan, "On the Variance of Neural Network Training with respect to Test Sets and
    Distributions", arXiv:2304.01910, theorem 2.
    """

    total: float
    """Standard deviation of the measured test accuracy."""
    test_set: float
    """Part of `total` that is due to the finite number of test images."""
    training: float
    """Estimated standard deviation on an infinitely large test set. 0 if the estimate of the
    variance is negative."""


class Comparison(NamedTuple):
    """Difference in accuracy between two groups of runs, over the seeds that both have."""

    a: tuple[float, ...]
    """Accuracy of the first group in percent, one value per common seed."""
    b: tuple[float, ...]
    """Accuracy of the second group in percent, for the same seeds."""
    seeds: tuple[int, ...]
    """Seeds that both groups have, sorted."""
    difference: float
    """Mean of `b` minus `a`, in percentage points."""
    low: float | None
    """Lower end of the 95 % interval of `difference`. None for fewer than two seeds."""
    high: float | None
    """Upper end of the 95 % interval of `difference`. None for fewer than two seeds."""
    p_value: float | None
    """Two-sided p-value of the sign-flip test. None for fewer than two seeds."""
    test_error: float | None
    """Standard error of `difference` that is due to the finite number of test images, in percentage
    points. None for the validation accuracy, if no outputs are stored, and if the groups stored
    the test images in different orders."""
    spread_a: Spread | None
    """Spread of the first group. None for fewer than two seeds, or without stored outputs."""
    spread_b: Spread | None
    """Spread of the second group. None for fewer than two seeds, or without stored outputs."""

    @property
    def verdict(self) -> str:
        """The conclusion in words."""
        pairs = counted(len(self.seeds), "paired seed")
        if len(self.seeds) < MIN_SEEDS:
            return f"No verdict: {pairs} cannot reach p < {LEVEL}. At least {MIN_SEEDS} are needed."
        assert self.p_value is not None
        if self.p_value >= LEVEL:
            return f"The difference is not significant (p = {self.p_value:.2g}, {pairs})."
        higher = "B" if self.difference > 0 else "A"
        return f"{higher} is more accurate (p = {self.p_value:.2g}, {pairs})."


def compare(a: SeedGroup, b: SeedGroup, metric: str = "test_accuracy") -> Comparison:
    """Return the difference in accuracy between two groups, over the seeds that both have.

    Args:
      a: first group of runs.
      b: second group of runs.
      metric: `test_accuracy` or `validation_accuracy`, after the last epoch.

    Raises:
      UserError: no seed is finished in both groups, a result lacks the metric, or the runs used
        different data sets or different validation images.
    """
    runs_a, runs_b = by_seed(a), by_seed(b)
    seeds = tuple(sorted(runs_a.keys() & runs_b.keys()))
    if not seeds:
        raise UserError(
            f"no seed is finished in both groups: {title(a)} has {_seeds(runs_a)}, and "
            f"{title(b)} has {_seeds(runs_b)}"
        )
    _check_data([*runs_a.values(), *runs_b.values()])
    if metric == "validation_accuracy":
        _check_validation([*runs_a.values(), *runs_b.values()])
    pairs_a = {seed: runs_a[seed] for seed in seeds}
    pairs_b = {seed: runs_b[seed] for seed in seeds}
    accuracy_a = tuple(_accuracy(run, metric) for run in pairs_a.values())
    accuracy_b = tuple(_accuracy(run, metric) for run in pairs_b.values())
    differences = [y - x for x, y in zip(accuracy_a, accuracy_b, strict=True)]
    several = len(seeds) > 1  # An interval needs two or more pairs.
    low, high = bootstrap_interval(differences) if several else (None, None)
    labels_a, correct_a = _correct(pairs_a) if metric == "test_accuracy" else (None, None)
    labels_b, correct_b = _correct(pairs_b) if metric == "test_accuracy" else (None, None)
    return Comparison(
        accuracy_a,
        accuracy_b,
        seeds,
        math.fsum(differences) / len(seeds),
        low,
        high,
        sign_flip_p_value(differences) if several else None,
        test_set_error(correct_a, correct_b) if _equal(labels_a, labels_b) else None,
        spread(correct_a) if several and correct_a is not None else None,
        spread(correct_b) if several and correct_b is not None else None,
    )


def find_group(name: str, folder: Path) -> SeedGroup:
    """Return the runs that a user names.

    Args:
      name: an experiment, or a path to run folders or records of one experiment with the same
        settings.
      folder: folder in which to find the runs of an experiment. Runs with changed settings are
        ignored.

    Raises:
      UserError: there are no such runs, or the path contains several experiments or settings.
    """
    path = local_path(name)
    if path.exists():
        groups = [group for group in collect(read_runs([path])) if group.runs]
    else:
        if not folder.is_dir():
            raise UserError(f"there is no path {name}, and no folder {folder} with its runs")
        groups = [group for group in collect(read_runs([folder])) if group.runs]
        known = {*experiments(), *(group.experiment for group in groups)}
        if name not in known:
            raise UserError(
                f"{name} is neither an experiment nor a path with runs{nearest(name, known)}"
            )
        groups = [
            group
            for group in groups
            if group.experiment == name
            and not (group.changes if name in experiments() else group.runs[0].overrides)
        ]
    if not groups:
        raise UserError(f"{folder} contains no run of {name} with unchanged settings")
    if len(groups) > 1:
        listing = "; ".join(title(group) for group in groups)
        raise UserError(f"{name} contains runs of several settings: {listing}. Name one of them.")
    return groups[0]


def by_seed(group: SeedGroup) -> dict[int, RunRecord]:
    """Return the first finished run of each seed, by seed."""
    runs: dict[int, RunRecord] = {}
    for run in group.finished:
        runs.setdefault(run.seed, run)
    return runs


def repeated_seeds(group: SeedGroup, seeds: Iterable[int]) -> tuple[str, ...]:
    """Return a sentence for each of the seeds that has several finished runs in a group."""
    used = by_seed(group)
    counts = {seed: sum(run.seed == seed for run in group.finished) for seed in seeds}
    return tuple(
        f"{title(group)} seed {seed} has {number} finished runs: {used[seed].path} is used."
        for seed, number in counts.items()
        if number > 1
    )


def title(group: SeedGroup) -> str:
    """Return the experiment and the changed settings of a group."""
    return " ".join([group.experiment, *settings_text(group.changes)])


def bootstrap_interval(differences: list[float]) -> tuple[float, float]:
    """Return the 95 % BCa bootstrap interval of the mean of at least two paired differences.

    If all differences are equal, both ends of the interval equal this difference.
    """
    import numpy as np
    from scipy import stats

    if len(set(differences)) == 1:
        return differences[0], differences[0]
    interval = stats.bootstrap(
        (np.asarray(differences),),
        np.mean,
        confidence_level=1 - LEVEL,
        n_resamples=_SAMPLES // 10,
        rng=np.random.default_rng(0),
        method="BCa",
    ).confidence_interval
    return float(interval.low), float(interval.high)


def sign_flip_p_value(differences: list[float]) -> float:
    """Return the two-sided p-value of the sign-flip test for paired differences.

    If the groups do not differ, both signs of a difference are equally likely. The test computes
    the mean of the differences for many combinations of signs. The p-value is the fraction of these
    means that are at least as far from 0 as the observed mean.
    """
    import numpy as np

    values = np.asarray(differences)
    count = len(values)
    if count <= _EXACT_PAIRS:
        signs = np.array(list(itertools.product((1, -1), repeat=count)))
    else:
        signs = np.random.default_rng(0).choice((1, -1), size=(_SAMPLES, count))
        signs[0] = 1  # Count the observed differences as one sample, so that p is never 0.
    observed = abs(values.mean())
    return float((abs(signs @ values) / count >= observed - 1e-9).mean())


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Return p-values corrected for multiple tests with Holm's method.

    Source: Holm, "A Simple Sequentially Rejective Multiple Test Procedure", 1979.
    """
    corrected: dict[str, float] = {}
    largest = 0.0
    for rank, name in enumerate(sorted(p_values, key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[name]))
        corrected[name] = largest
    return {name: corrected[name] for name in p_values}


def spread(correct: np.ndarray) -> Spread:
    """Return the spread of the test accuracy over at least two seeds.

    Args:
      correct: whether each image was classified correctly, bool `[seeds, images]`.
    """
    images = correct.shape[1]
    total = float(correct.mean(axis=1).var(ddof=1))
    test_set = float(correct.var(axis=0, ddof=1).mean()) / images
    training = max(0.0, (total - test_set) * images / (images - 1))
    return Spread(*(100 * math.sqrt(variance) for variance in (total, test_set, training)))


def test_set_error(a: np.ndarray | None, b: np.ndarray | None) -> float | None:
    """Return the standard error of an accuracy difference, due to the finite number of test images.

    The difference is `b` minus `a`, in percentage points. The result is None if `a` or `b` is None,
    or if the numbers of images differ.

    Args:
      a: whether the first group classified each image correctly, bool `[seeds, images]`, or None.
      b: whether the second group classified each image correctly, bool `[seeds, images]`, or None.
    """
    if a is None or b is None or a.shape[1] != b.shape[1]:
        return None
    differences = b.mean(axis=0) - a.mean(axis=0)
    return 100 * float(differences.std(ddof=1)) / math.sqrt(len(differences))


def _accuracy(run: RunRecord, metric: str) -> float:
    value = getattr(run.result, metric)
    if value is None:
        raise UserError(f"{run.path} has no {metric.replace('_', ' ')}")
    return value


def _check_data(runs: list[RunRecord]) -> None:
    """Raise UserError if the runs used different data sets."""
    results = {run.path: run.result for run in runs if run.result}
    (first, expected), *others = results.items()
    for path, result in others:
        if result.data_content != expected.data_content:
            one, other = _images(expected), _images(result)
            if one == other:
                raise UserError(f"the images of {one} changed between {first} and {path}")
            raise UserError(
                f"the runs used different data sets: {first} used {one}, {path} used {other}"
            )


def _check_validation(runs: list[RunRecord]) -> None:
    """Raise UserError if the runs held out different numbers of validation images."""
    first, *others = runs
    for run in others:
        pair = (first, run)
        value, other = (each.settings.get("data.validation") for each in pair)
        counts = [each.card.data.validation_images for each in pair if each.card and each.card.data]
        same_count = len(counts) == 2 and counts[0] == counts[1]  # 0.1 and 5000 can be the same.
        if value != other and not same_count:
            raise UserError(
                f"the runs have different validation images: data.validation is {as_text(value)} "
                f"in {first.path}, but {as_text(other)} in {run.path}. Train both with the same "
                "value"
            )


def _images(result: Result) -> str:
    settings = result.settings
    crop = "" if settings.get("data.center_crop", True) else " without a crop"
    return f"{result.dataset} at {settings.get('data.image_size', 32)} pixels{crop}"


def _correct(
    runs: Mapping[int, RunRecord],
) -> tuple[np.ndarray, np.ndarray] | tuple[None, None]:
    """Return the labels of the test images, and which images each run classifies correctly.

    Both are None if a run has no stored outputs, if the labels of the runs differ, or if there is
    only one image.

    Returns:
      Labels `[images]`, and bool `[runs, images]`.
    """
    import numpy as np

    outputs = [read_outputs(run.outputs) for run in runs.values() if run.outputs]
    if len(outputs) < len(runs):
        return None, None
    labels = outputs[0].labels
    if not all(_equal(output.labels, labels) for output in outputs):
        return None, None
    if len(labels) < 2:  # A single image has no variance.
        return None, None
    return labels, np.stack([output.logits.argmax(-1) == output.labels for output in outputs])


def _equal(a: np.ndarray | None, b: np.ndarray | None) -> bool:
    import numpy as np

    return a is not None and b is not None and np.array_equal(a, b)


def _seeds(runs: Mapping[int, RunRecord]) -> str:
    if not runs:
        return "no finished run"
    return f"seed {', '.join(map(str, sorted(runs)))}"
