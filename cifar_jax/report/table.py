"""Words what the tables say of a group of runs."""

from __future__ import annotations

import re
import statistics
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from cifar_jax.config import Paper
from cifar_jax.report.groups import SeedGroup, settings_text
from cifar_jax.runs.run import Run

# Features of a processor, as Linux names them, and how people do.
_VECTORS = (("avx512_bf16", "AVX-512 BF16"), ("avx512f", "AVX-512"), ("avx2", "AVX2"))


class Row(NamedTuple):
    """The cells of a group's row, as text; empty where there is nothing to say."""

    experiment: str
    changes: tuple[str, ...]
    """As they are given to `--set`."""
    model: str
    parameters: str
    """And `≠` the paper's, where it differs."""
    paper: str
    """Test accuracy in percent, as are the next three; of a better recipe the paper's best for the
    same network."""
    measured: str
    """Of the last epoch: mean ± sample standard deviation over the seeds."""
    difference: str
    """Measured less paper, in percentage points."""
    best: str
    """Of the epoch with the best validation accuracy: mean over the seeds."""
    seeds: str
    """How many, if several, and of how many runs, if more."""
    unfinished: tuple[str, ...]
    """How far the unfinished runs are."""
    epochs: str
    seconds: float | None
    """Wall time of one run: mean over the seeds."""
    device: str
    commit: str

    @property
    def wall_time(self) -> str:
        """As a person says it."""
        return "" if self.seconds is None else duration(self.seconds)


class Part(NamedTuple):
    """The cells of an unfinished run, as text."""

    experiment: str
    seed: str
    progress: str
    seconds: float | None
    device: str
    commit: str


def row(group: SeedGroup) -> Row:
    """What a table says of `group`."""
    results, paper, config = group.results, group.reference, group.config
    test, best = group.measured(), group.measured("best_validation_test_accuracy")
    # Of an experiment that is not in this package, the results alone know the paper's accuracy.
    told = [r["paper_accuracy"] for r in results if r["paper_accuracy"] is not None]
    reference = None if group.changes else paper.test_accuracy if paper else (told or [None])[0]
    models = [r["model"] for r in results] or ([config.model.name] if config else [])
    # Without env.json there is what the result says of the last start.
    starts = [start for run in group.finished for start in run.starts or [run.result or {}]]
    return Row(
        experiment=group.experiment,
        changes=settings_text(group.changes),
        model=_joined(models),
        parameters=_parameters([r["parameters"] for r in results], paper),
        paper="" if reference is None else f"{reference:.2f}",
        measured=mean_std(test),
        difference=difference(test, reference),
        best=f"{statistics.fmean(best):.2f}" if best else "",
        seeds=_seeds(len(test), len(results)),
        unfinished=tuple(progress(run) for run in group.unfinished),
        epochs=_range({run.epochs for run in group.finished} or {group.epochs}),
        seconds=statistics.fmean(group.measured("wall_seconds")) if results else None,
        device=_joined(device(start) for start in starts),
        commit=_joined(_short(start["git_commit"]) for start in starts),
    )


def parts(group: SeedGroup) -> list[Part]:
    """What a table says of each unfinished run of `group`."""
    return [
        Part(
            experiment=group.experiment,
            seed=str(run.seed),
            progress=progress(run),
            seconds=run.rows[-1].get("wall_seconds") if run.rows else 0,
            device=_joined(device(start) for start in run.starts),
            commit=_joined(_short(start["git_commit"]) for start in run.starts),
        )
        for run in group.unfinished
    ]


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


def device(start: Mapping[str, Any]) -> str:
    """What a start ran on: the accelerators, or the processor and how many of its cores."""
    found, machine = start["device"], start["machine"]
    if found.get("platform") != "cpu":
        count, kind = found.get("count", 1), found.get("kind", "unknown")
        return f"{count} × {kind}" if count > 1 else str(kind)
    name = re.sub(
        r"\((R|TM)\)|@.*|\b(CPU|Processor)\b|\b\d+-Core\b", "", machine.get("cpu") or "CPU"
    )
    cores, features = machine.get("cores"), machine.get("features", ())
    # Virtual machines call processors alike that differ threefold.
    widest = next((w for f, w in _VECTORS if f in features), None)
    plural = "s" if cores != 1 else ""
    parts = [" ".join(name.split()), f"{cores} core{plural}" if cores else None, widest]
    return ", ".join(filter(None, parts))


def _parameters(counts: Sequence[int], paper: Paper | None) -> str:
    text = _joined(f"{count:,}" for count in counts)
    if paper is None:
        return text
    expected = f"{paper.parameters:,}"
    return expected if text in ("", expected) else f"{text} ≠ {expected}"


def progress(run: Run) -> str:
    """How far an unfinished run is, and what it has come to.

    The test images are for the end: what is told is of the validation images, where there are some.
    """
    text = f"epoch {run.rows[-1]['epoch'] if run.rows else 0} of {run.epochs}"
    if not run.rows:
        return text
    split = "validation" if "validation_accuracy" in run.rows[-1] else "train"
    return f"{text}: {split} {run.rows[-1][f'{split}_accuracy']:.1f} %"


def _seeds(seeds: int, runs: int) -> str:
    if runs > seeds:
        return f"({runs} runs of {seeds} seed{'s' if seeds > 1 else ''})"
    return f"({seeds} seeds)" if seeds > 1 else ""


def difference(measured: Sequence[float], paper: float | None) -> str:
    """Mean less the paper's, in percentage points, with its sign."""
    if not measured or paper is None:
        return ""
    return f"{statistics.fmean(measured) - paper:+.2f}".replace("-", "−")


def _range(numbers: Collection[int | None]) -> str:
    """Runs that are fitted into the same minutes may differ in their epochs."""
    known = [number for number in numbers if number is not None]
    return "–".join(map(str, sorted({min(known), max(known)}))) if known else ""


def _short(commit: str | None) -> str:
    if not commit:
        return "unknown"
    sha, dash, dirty = commit.partition("-")
    return sha[:7] + dash + dirty


def _joined(texts: Iterable[str]) -> str:
    return " / ".join(dict.fromkeys(texts))
