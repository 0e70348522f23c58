"""Group the runs that differ only in their seeds."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from cifar_jax.config import Config, Paper, as_text
from cifar_jax.runs.run import RunRecord, experiments
from cifar_jax.runs.schemas import Result

Section = Literal["paper", "recipes", "variants", "changed"]
"""Section of the report: experiments of the paper and of the user's own files; better recipes;
variants of the paper's experiments; runs with changed settings or images."""


@dataclass(frozen=True)
class SeedGroup:
    """Runs of one experiment with the same settings and images."""

    experiment: str
    changes: Mapping[str, Any]
    """Values of the settings that differ from the experiment, by name. `data_sha256` is added if
    the images are not the official ones. A group with changes is not compared with the paper."""
    runs: Sequence[RunRecord]
    """The runs, sorted by seed. Empty if the experiment was not run."""

    @property
    def config(self) -> Config | None:
        """Config of the experiment file, if the experiment is part of the package."""
        return experiments().get(self.experiment)

    @property
    def paper(self) -> Paper | None:
        """The paper's result. None if settings differ or the experiment is not from the paper."""
        return self.config.paper if self.config and not self.changes else None

    @property
    def is_better_recipe(self) -> bool:
        """Whether the runs are of an unchanged better recipe of the package."""
        return self.section == "recipes"

    @property
    def section(self) -> Section:
        """Section of the report that lists the group."""
        if self.changes:
            return "changed"
        if self.config is None or self.config.paper:
            return "paper"
        return "variants" if self.config.varies else "recipes"

    @property
    def reference(self) -> Paper | None:
        """The paper's result for comparison with this group.

        For an experiment of the paper, this is the result of the experiment. For a variant, it is
        the result of the experiment that is varied. For a better recipe, it is the paper's best
        result with the same network.
        """
        if self.config is None or self.section not in ("recipes", "variants"):
            return self.paper
        best = self.config.varies or best_paper_experiment(self.config.model.name)
        return experiments()[best].paper if best else None

    @property
    def epochs(self) -> int | None:
        """Number of epochs; None if it is unknown."""
        if self.runs:
            return self.runs[0].epochs
        return self.config.epochs if self.config else None

    @property
    def finished(self) -> list[RunRecord]:
        """Runs with a result, sorted by seed.

        A run folder and a record of the same run count as one run. The run folder is used, because
        it has more files.
        """
        distinct: dict[Any, RunRecord] = {}
        for run in sorted(self.runs, key=lambda run: run.path.suffix == ".json"):
            if run.result:
                distinct.setdefault((run.seed, run.result.params_sha256 or run.path), run)
        return sorted(distinct.values(), key=lambda run: run.seed)

    @property
    def distinct(self) -> list[RunRecord]:
        """The finished and the unfinished runs. Each run is listed once."""
        return [*self.finished, *self.unfinished]

    @property
    def results(self) -> list[Result]:
        """Results of the finished runs."""
        return [run.result for run in self.finished if run.result]

    @property
    def unfinished(self) -> list[RunRecord]:
        """Runs without a result."""
        return [run for run in self.runs if not run.result]

    def measured(self, name: str = "test_accuracy") -> list[float]:
        """Return the values of a result field, one per seed.

        If a seed was run several times, the value is the mean over its runs.
        """
        seeds: dict[int, list[float]] = {}
        for result in self.results:
            if (value := getattr(result, name)) is not None:
                seeds.setdefault(result.seed, []).append(value)
        return [statistics.fmean(values) for values in seeds.values()]


def collect(runs: Iterable[RunRecord]) -> list[SeedGroup]:
    """Group the runs that differ only in their seeds.

    The paper's experiments come first, in the order of the paper. The paper's experiments are
    included even if they were not run. Other experiments come next. Runs with changed settings or
    images come last.
    """
    runs = list(runs)
    by_settings: dict[tuple[str, str], dict[str | None, list[RunRecord]]] = {
        (name, _text({})): {None: []} for name, config in experiments().items() if config.paper
    }
    for run in runs:
        settings = run.changes if run.experiment in experiments() else _own_settings(run)
        by_images = by_settings.setdefault((run.experiment, _text(settings)), {})
        by_images.setdefault(_images(run), []).append(run)
    groups = []
    for (experiment, _), by_images in by_settings.items():
        ambiguous = len(by_images.keys() - {None}) > 1
        for images, members in by_images.items():
            changes = _changes(members[0], runs) if members else {}
            if images and (ambiguous or members[0].has_other_images):
                changes["data_sha256"] = images[:8]
            members.sort(key=lambda run: (run.seed, run.path))
            groups.append(SeedGroup(experiment, changes, members))
    order = list(experiments())

    def place(group: SeedGroup) -> tuple[bool, int, str, str]:
        name = group.experiment
        known = order.index(name) if name in order else len(order)
        return bool(group.changes), known, name, " ".join(settings_text(group.changes))

    return sorted(groups, key=place)


def best_paper_experiment(network: str) -> str | None:
    """Return the name of the paper's best experiment with a network, or None if there is none."""
    accuracies = {
        name: config.paper.test_accuracy
        for name, config in experiments().items()
        if config.paper and config.model.name == network
    }
    return max(accuracies, key=accuracies.__getitem__, default=None)


def settings_text(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Return each setting in the form that `--set` accepts."""
    return tuple(f"{name}={as_text(value)}" for name, value in settings.items())


def _images(run: RunRecord) -> str | None:
    """Return the SHA-256 of a run's images, or None for the official CIFAR-10 or unknown images."""
    return None if run.data_official else run.data_sha256


def _changes(run: RunRecord, runs: Sequence[RunRecord]) -> dict[str, Any]:
    """Return the settings that tell `run` apart from the other runs of its experiment."""
    changes = dict(run.changes)
    if run.experiment not in experiments():
        # The experiment file may have changed between the runs, so compare all settings.
        for other in runs:
            if (other.experiment, other.changes) == (run.experiment, run.changes):
                settings = _own_settings(other)
                changes |= {k: v for k, v in _own_settings(run).items() if settings.get(k) != v}
    return changes


def _own_settings(run: RunRecord) -> dict[str, Any]:
    """Return the settings and the code of an experiment that is not part of the package."""
    return {**run.identity, "code": run.code}


def _text(settings: Mapping[str, Any]) -> str:
    return json.dumps(dict(settings), sort_keys=True)
