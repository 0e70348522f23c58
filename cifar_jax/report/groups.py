"""Groups runs over seeds, and tells what a group is to be compared with."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cifar_jax.config import Config, Paper
from cifar_jax.runs.run import Run, experiments, key


@dataclass(frozen=True)
class SeedGroup:
    """The runs of one experiment with the same settings and data, which differ in their seeds."""

    experiment: str
    changes: Mapping[str, Any]
    """What differs from the experiment: settings, how often its learning rate was halved, and the
    digest of images that are not the official ones. Where there is something, the runs are not the
    paper's experiment, and stand neither in its row nor beside its accuracy."""
    runs: tuple[Run, ...]
    """In the order of their seeds; none where the experiment was not run."""

    @property
    def config(self) -> Config | None:
        """That of the experiment's file, where the experiment comes with this package."""
        return experiments().get(self.experiment)

    @property
    def paper(self) -> Paper | None:
        """What the paper reports for these very settings."""
        return self.config.paper if self.config and not self.changes else None

    @property
    def better(self) -> bool:
        """Whether it is of a better recipe: an experiment of this package that is not the paper's,
        at its own settings."""
        return self.config is not None and not self.config.paper and not self.changes

    @property
    def reference(self) -> Paper | None:
        """What these runs are to be compared with: what the paper reports for the experiment, or,
        of a better recipe, the best that it reports for the network."""
        if not self.better or not self.config:
            return self.paper
        best = papers_best(self.config.model.name)
        return experiments()[best].paper if best else None

    @property
    def epochs(self) -> int | None:
        """Of the longest run, or as many as a run is to have."""
        if self.runs:
            return max(run.epochs for run in self.finished or self.runs)
        return self.config.epochs if self.config else None

    @property
    def finished(self) -> list[Run]:
        """Runs with a result. Copies of a run, such as its folder and its record, count once."""
        distinct: dict[Any, Run] = {}
        for run in self.runs:
            if run.result:
                weights = run.result.get("params_sha256") or run.path
                distinct.setdefault((run.seed, weights), run)
        return list(distinct.values())

    @property
    def results(self) -> list[Mapping[str, Any]]:
        """Of the finished runs."""
        return [run.result for run in self.finished if run.result]

    @property
    def unfinished(self) -> list[Run]:
        """Runs without a result so far, or for good."""
        return [run for run in self.runs if not run.result]

    def measured(self, name: str = "test_accuracy") -> list[float]:
        """A number of each seed that has it: of several runs of a seed, their mean."""
        seeds: dict[int, list[float]] = {}
        for result in self.results:
            if result[name] is not None:
                seeds.setdefault(result["seed"], []).append(result[name])
        return [statistics.fmean(values) for values in seeds.values()]


def collect(runs: Iterable[Run]) -> list[SeedGroup]:
    """Runs of the same settings and data together: every experiment of the paper in its order, run
    or not, then other experiments, then whatever ran with other settings or images."""
    runs = list(runs)
    found: dict[tuple[str, str], dict[str | None, list[Run]]] = {
        (name, key({})): {None: []} for name, config in experiments().items() if config.paper
    }
    # An older run on its way does not tell its images: it joins those that do.
    for run in sorted(runs, key=lambda run: not run.tells_its_images):
        compared = run.changes if run.experiment in experiments() else run.identity
        if halvings := run.halvings:
            compared = {**compared, "halvings": halvings}
        of_images = found.setdefault((run.experiment, key(compared)), {})
        told = _images(run) if run.tells_its_images or not of_images else next(iter(of_images))
        of_images.setdefault(told, []).append(run)
    groups = [
        SeedGroup(
            name,
            _changes(of[0], runs, told, len(of_images) > 1) if of else {},
            tuple(sorted(of, key=lambda run: (run.seed, run.path))),
        )
        for (name, _), of_images in found.items()
        for told, of in of_images.items()
    ]
    order = list(experiments())

    def place(group: SeedGroup) -> tuple[bool, int, str, str]:
        name = group.experiment
        known = order.index(name) if name in order else len(order)
        return bool(group.changes), known, name, " ".join(settings_text(group.changes))

    return sorted(groups, key=place)


def papers_best(network: str) -> str | None:
    """The paper's experiment of the best accuracy with that network; none if it has none."""
    papers = {
        name: config.paper.test_accuracy
        for name, config in experiments().items()
        if config.paper and config.model.name == network
    }
    return max(papers, key=papers.__getitem__, default=None)


def settings_text(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Each setting as it is given to `--set`."""
    return tuple(f"{name}={value}" for name, value in settings.items())


def _images(run: Run) -> str | None:
    """What tells its images from others; nothing where they are the official CIFAR-10."""
    return None if run.official else run.data or "unknown"


def _changes(run: Run, runs: Sequence[Run], images: str | None, several: bool) -> dict[str, Any]:
    """What a table is to say of `run`, so that its row is not taken for another's."""
    changes = dict(run.changes)
    if run.experiment not in experiments():
        # Its file may have changed from one run to the next.
        for other in runs:
            if other.experiment == run.experiment and other.changes == run.changes:
                there = other.identity
                changes |= {k: v for k, v in run.identity.items() if there.get(k) != v}
    if halvings := run.halvings:
        changes["halvings"] = halvings
    if images and (several or run.other_data):
        changes["data_sha256"] = images[:8]
    return changes
