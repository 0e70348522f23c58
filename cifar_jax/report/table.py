"""Format the cells of the report's tables as text."""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from cifar_jax.config import Paper
from cifar_jax.report.groups import SeedGroup, settings_text
from cifar_jax.runs.run import RunRecord
from cifar_jax.runs.schemas import Session

# The tables state the vector unit of a processor as well as the name. On virtual machines,
# processors with the same name can differ threefold in speed.
_VECTOR_UNITS = (("avx512_bf16", "AVX-512 BF16"), ("avx512f", "AVX-512"), ("avx2", "AVX2"))


class Row(NamedTuple):
    """The cells of a table row for one group of runs. A cell without a value is empty."""

    experiment: str
    changes: tuple[str, ...]
    """Changed settings as `key=value`, the form that `--set` accepts."""
    model: str
    parameters: str
    """Number of parameters. If the paper's number differs, it follows after `≠`."""
    paper: str
    """Test accuracy in the paper, in percent. For a better recipe, the paper's best test accuracy
    with the same network."""
    measured: str
    """Test accuracy after the last epoch, in percent: mean ± sample standard deviation over the
    seeds."""
    difference: str
    """`measured` minus `paper`, in percentage points."""
    best: str
    """Test accuracy at the best epoch by `train.best_by`, in percent: mean over the seeds."""
    seeds: str
    """Number of seeds as text, such as `(3 seeds)`. Empty for a single seed. The number of runs is
    added if a seed was run more than once."""
    unfinished: tuple[str, ...]
    """Progress of each unfinished run."""
    epochs: str
    seconds: float | None
    """Wall time of one run in seconds: mean over the runs on the first of the machines."""
    device: str
    commit: str

    @property
    def wall_time(self) -> str:
        """Wall time of one run with its unit."""
        return "" if self.seconds is None else duration(self.seconds)


def row(group: SeedGroup) -> Row:
    """Return the cells for `group`."""
    results, paper, config = group.results, group.reference, group.config
    test, best = group.measured(), group.measured("best_validation_test_accuracy")
    accuracy = paper.test_accuracy if paper else None
    # For an experiment outside of the package, the results store the paper's accuracy.
    if config is None and not group.changes:
        accuracy = next((r.paper_accuracy for r in results if r.paper_accuracy is not None), None)
    models = [r.model for r in results] or ([config.model.name] if config else [])
    sessions = [session for run in group.finished for session in run.sessions]
    return Row(
        experiment=group.experiment,
        changes=settings_text(group.changes),
        model=_joined(models),
        parameters=_parameters([r.parameters for r in results], paper),
        paper="" if accuracy is None else f"{accuracy:.2f}",
        measured=mean_std(test),
        difference=_difference(test, accuracy),
        best=f"{statistics.fmean(best):.2f}" if best else "",
        seeds=_seeds(len(test), len(results)),
        unfinished=tuple(progress(run) for run in group.unfinished),
        epochs=_epochs(group),
        seconds=wall_seconds(group),
        device=_joined(map(device, sessions)),
        commit=_joined(_short(session.git_commit) for session in sessions),
    )


def _epochs(group: SeedGroup) -> str:
    """Return the number of epochs as text, such as `12 of 100` for runs that stopped early."""
    if group.epochs is None:
        return ""
    trained = [result.epochs for result in group.results] or [group.epochs]
    first, last = min(trained), max(trained)
    if first == last == group.epochs:
        return str(first)
    return f"{first if first == last else f'{first}–{last}'} of {group.epochs}"


def wall_seconds(group: SeedGroup) -> float | None:
    """Return the mean wall time of the finished runs on the machine of the first finished run.

    The times of different machines cannot be averaged.
    """
    times: dict[str, list[float]] = {}
    for run in group.finished:
        if run.result:
            machine = device(run.sessions[0]) if run.sessions else ""
            times.setdefault(machine, []).append(run.result.wall_seconds)
    return statistics.fmean(next(iter(times.values()))) if times else None


def mean_std(values: Sequence[float]) -> str:
    """Return mean ± sample standard deviation with two decimals; the mean alone for one value.

    >>> mean_std([61.0, 62.0, 63.0])
    '62.00 ± 1.00'
    """
    if not values:
        return ""
    mean = f"{statistics.fmean(values):.2f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.2f}"


def signed(value: float) -> str:
    """Return a difference with its sign and two decimals.

    >>> signed(1.5), signed(-0.25)
    ('+1.50', '−0.25')
    """
    return f"{value:+.2f}".replace("-", "−")


def duration(seconds: float) -> str:
    """Return a time as text in seconds, minutes, hours or days.

    >>> [duration(s) for s in (0.4, 99, 101, 6001, 200_000)]
    ['0 s', '99 s', '2 min', '1.7 h', '2.3 d']
    """
    for unit, size, until in (("s", 1, 100), ("min", 60, 100 * 60), ("h", 3600, 48 * 3600)):
        if seconds < until:
            number = f"{seconds / size:.1f}" if unit == "h" else f"{seconds / size:.0f}"
            return f"{number} {unit}"
    return f"{seconds / 86400:.1f} d"


def device(session: Session) -> str:
    """Return the accelerators of a session, or its processor and number of cores."""
    devices, machine = session.device, session.machine
    if devices.platform != "cpu":
        return f"{devices.count} × {devices.kind}" if devices.count > 1 else devices.kind
    name = re.sub(r"\((R|TM)\)|@.*|\b(CPU|Processor)\b|\b\d+-Core\b", "", machine.cpu or "")
    name = " ".join(name.split()) or "CPU"
    plural = "" if machine.cores == 1 else "s"
    cores = f"{machine.cores} core{plural}" if machine.cores else ""
    widest = next((text for unit, text in _VECTOR_UNITS if unit in machine.features), "")
    return ", ".join(filter(None, (name, cores, widest)))


def progress(run: RunRecord) -> str:
    """Return the last epoch of an unfinished run, with its validation or training accuracy."""
    if not run.rows:
        return f"epoch 0 of {run.epochs}"
    last = run.rows[-1]
    validated = last.validation_accuracy is not None
    split = "validation" if validated else "train"
    accuracy = last.validation_accuracy if validated else last.train_accuracy
    return f"epoch {last.epoch} of {run.epochs}: {split} {accuracy:.1f} %"


def _parameters(counts: Sequence[int], paper: Paper | None) -> str:
    text = _joined(f"{count:,}" for count in counts)
    if paper is None:
        return text
    expected = f"{paper.parameters:,}"
    return expected if text in ("", expected) else f"{text} ≠ {expected}"


def _seeds(seeds: int, runs: int) -> str:
    if runs > seeds:
        return f"({runs} runs of {seeds} seed{'s' if seeds > 1 else ''})"
    return f"({seeds} seeds)" if seeds > 1 else ""


def _difference(measured: Sequence[float], paper: float | None) -> str:
    if not measured or paper is None:
        return ""
    return signed(statistics.fmean(measured) - paper)


def _short(commit: str | None) -> str:
    if not commit:
        return "unknown"
    sha, dash, dirty = commit.partition("-")
    return sha[:7] + dash + dirty


def _joined(texts: Iterable[str]) -> str:
    return " / ".join(dict.fromkeys(texts))
