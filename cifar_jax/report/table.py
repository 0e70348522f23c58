"""Groups runs over seeds, and words what the tables say of a group."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from cifar_jax.config import Config, Paper
from cifar_jax.runs.reading import Run, experiments


@dataclass(frozen=True)
class Group:
    """The runs of one experiment with the same settings, which differ in their seeds alone."""

    experiment: str
    changes: Mapping[str, Any]
    """Settings that differ from the experiment's. Where there are some, the runs are not the
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
    def results(self) -> list[Mapping[str, Any]]:
        """Of the finished runs. Copies of a run, such as its folder and its record, count once."""
        distinct: dict[Any, Mapping[str, Any]] = {}
        for run in self.runs:
            if run.result:
                weights = run.result.get("params_sha256") or run.path
                distinct.setdefault((run.seed, weights), run.result)
        return list(distinct.values())

    @property
    def unfinished(self) -> list[Run]:
        """Runs without a result so far, or for good."""
        return [run for run in self.runs if not run.result]

    def measured(self, name: str = "test_accuracy") -> list[float]:
        """A number of each finished run, where it has one."""
        return [result[name] for result in self.results if result[name] is not None]


class Row(NamedTuple):
    """The cells of a group's row, as text; empty where there is nothing to say."""

    experiment: str
    changes: tuple[str, ...]
    """As they are given to `--set`."""
    model: str
    parameters: str
    """And `≠` the paper's, where it differs."""
    paper: str
    """Test accuracy in percent, as are the next three."""
    measured: str
    """Of the last epoch: mean ± sample standard deviation over the seeds."""
    difference: str
    """Measured less paper, in percentage points."""
    best: str
    """Of the epoch with the best validation accuracy: mean over the seeds."""
    runs: tuple[str, ...]
    """How many seeds, if several, and how far the unfinished runs are; or that there is none."""
    epochs: str
    wall_time: str
    """Of one run: mean over the seeds."""
    device: str
    commit: str


def collect(runs: Iterable[Run]) -> list[Group]:
    """Runs of the same settings together: every experiment of the paper in its order, run or not,
    then other experiments, then whatever ran with other settings than its experiment's."""
    found: dict[tuple[str, str], list[Run]] = {}
    for name, config in experiments().items():
        if config.paper:
            found[name, "{}"] = []
    for run in runs:
        key = run.experiment, json.dumps(dict(run.changes), sort_keys=True)
        found.setdefault(key, []).append(run)
    order = list(experiments())

    def place(group: Group) -> tuple[bool, int, str, str]:
        name = group.experiment
        known = order.index(name) if name in order else len(order)
        return bool(group.changes), known, name, " ".join(settings_text(group.changes))

    groups = [
        Group(name, json.loads(changes), tuple(sorted(of, key=lambda run: (run.seed, run.path))))
        for (name, changes), of in found.items()
    ]
    return sorted(groups, key=place)


def row(group: Group, missing: str = "not run") -> Row:
    """What a table says of `group`; `missing` where it has no run at all."""
    results, paper, config = group.results, group.paper, group.config
    test, best = group.measured(), group.measured("best_validation_test_accuracy")
    # Of an experiment that is not in this package, the results alone know the paper's accuracy.
    told = [r["paper_accuracy"] for r in results if r["paper_accuracy"] is not None]
    reference = None if group.changes else paper.test_accuracy if paper else (told or [None])[0]
    notes = [f"({len(test)} seeds)"] if len(test) > 1 else []
    notes += [_progress(run) for run in group.unfinished]
    epochs = group.runs[0].epochs if group.runs else config.epochs if config else None
    models = [r["model"] for r in results] or ([config.model.name] if config else [])
    return Row(
        experiment=group.experiment,
        changes=settings_text(group.changes),
        model=_joined(models),
        parameters=_parameters([r["parameters"] for r in results], paper),
        paper="" if reference is None else f"{reference:.2f}",
        measured=mean_std(test),
        difference=_difference(test, reference),
        best=f"{statistics.fmean(best):.2f}" if best else "",
        runs=tuple(notes) if group.runs else (missing,),
        epochs="" if epochs is None else str(epochs),
        wall_time=duration(statistics.fmean(group.measured("wall_seconds"))) if results else "",
        device=_joined(device(r) for r in results),
        commit=_joined(_short(r["git_commit"]) for r in results),
    )


def mean_std(values: Sequence[float]) -> str:
    """Mean ± sample standard deviation with two decimals; one value alone has no deviation.

    >>> mean_std([61.0, 62.0, 63.0])
    '62.00 ± 1.00'
    """
    if not values:
        return ""
    mean = f"{statistics.fmean(values):.2f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.2f}"


def duration(seconds: float) -> str:
    """A time as a person says it.

    >>> [duration(s) for s in (19.4, 1500, 11520, 190080)]
    ['19 s', '25 min', '3.2 h', '2.2 d']
    """
    for unit, size, until in (("s", 1, 100), ("min", 60, 100 * 60), ("h", 3600, 48 * 3600)):
        if seconds < until:
            number = f"{seconds / size:.1f}" if unit == "h" else f"{seconds / size:.0f}"
            return f"{number} {unit}"
    return f"{seconds / 86400:.1f} d"


def device(result: Mapping[str, Any]) -> str:
    """What a run was computed on: the accelerators, or the processor and how many of its cores."""
    found, machine = result["device"], result["machine"]
    if found.get("platform") != "cpu":
        count, kind = found.get("count", 1), found.get("kind", "unknown")
        return f"{count} × {kind}" if count > 1 else str(kind)
    name = re.sub(r"\((R|TM)\)|@.*|\b(CPU|Processor)\b|\b\d+-Core\b", "", machine.get("cpu", "CPU"))
    cores = machine.get("cores")
    plural = "s" if cores != 1 else ""
    return " ".join(name.split()) + (f", {cores} core{plural}" if cores else "")


def settings_text(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Each setting as it is given to `--set`."""
    return tuple(f"{name}={value}" for name, value in settings.items())


def _parameters(counts: Sequence[int], paper: Paper | None) -> str:
    text = _joined(f"{count:,}" for count in counts)
    if paper is None:
        return text
    expected = f"{paper.parameters:,}"
    return expected if text in ("", expected) else f"{text} ≠ {expected}"


def _progress(run: Run) -> str:
    if not run.rows:
        return f"epoch 0/{run.epochs}"
    last = run.rows[-1]
    split = "validation" if "validation_accuracy" in last else "train"
    return f"epoch {last['epoch']}/{run.epochs}, {split} {last[f'{split}_accuracy']:.1f} %"


def _difference(measured: Sequence[float], paper: float | None) -> str:
    if not measured or paper is None:
        return ""
    return f"{statistics.fmean(measured) - paper:+.2f}".replace("-", "−")


def _short(commit: str | None) -> str:
    if not commit:
        return "unknown"
    sha, dash, dirty = commit.partition("-")
    return sha[:7] + dash + dirty


def _joined(texts: Iterable[str]) -> str:
    return " / ".join(dict.fromkeys(texts))
