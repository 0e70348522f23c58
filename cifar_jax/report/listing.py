"""List the runs in a folder, with their state. JAX is not imported."""

from __future__ import annotations

import time
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

from cifar_jax.errors import UserError
from cifar_jax.report.study import TrialState, read_study
from cifar_jax.runs.lock import is_locked
from cifar_jax.runs.reading import STUDY, read_folder, run_folders
from cifar_jax.runs.run import RunRecord


class State(StrEnum):
    """State of a run folder."""

    RUNNING = "running"
    STOPPED = "stopped"
    FINISHED = "finished"
    PRUNED = "pruned"
    """A trial of a study that was stopped early."""
    DAMAGED = "damaged"
    IMPORTED = "imported"


class Entry(NamedTuple):
    """One run folder in the list. Accuracies are in percent."""

    path: str
    state: State
    experiment: str | None = None
    seed: int | None = None
    epoch: int | None = None
    """Number of finished epochs."""
    epochs: int | None = None
    """Number of epochs in the settings."""
    validation_accuracy: float | None = None
    """Validation accuracy after the last finished epoch. None if it was not measured."""
    test_accuracy: float | None = None
    """Test accuracy. None if the run is not finished."""
    minutes_left: float | None = None
    """Estimated minutes for the remaining epochs, from the duration of the last finished epoch.
    None for a finished run, or before the end of the first epoch."""
    age_minutes: float | None = None
    """Minutes since the run last wrote its metrics or result."""
    problem: str | None = None
    """Why the folder cannot be read. None if it is not damaged."""


def list_runs(folder: Path) -> list[Entry]:
    """Return an entry for each run folder in `folder`, at any depth, sorted by path.

    Raises:
      UserError: `folder` is missing.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder. Run folders are runs/EXPERIMENT/seedN.")
    return sorted(_entry(path) for path in run_folders(folder))


def _entry(path: Path) -> Entry:
    age = _age_minutes(path)
    try:
        run, trial = read_folder(path), _trial_state(path)
    except UserError as error:
        return Entry(str(path), State.DAMAGED, age_minutes=age, problem=str(error))
    if run is None:
        return Entry(str(path), State.IMPORTED, age_minutes=age)
    last = run.rows[-1] if run.rows else None
    state = State.FINISHED if run.result else trial or State.STOPPED
    if state == State.STOPPED and is_locked(path):
        state = State.RUNNING
    return Entry(
        str(path),
        state,
        run.experiment,
        run.seed,
        run.result.epochs if run.result else last.epoch if last else 0,
        run.epochs,
        last.validation_accuracy if last else None,
        run.result.test_accuracy if run.result else None,
        None if state in (State.FINISHED, State.PRUNED) else _minutes_left(run),
        age,
    )


def _trial_state(path: Path) -> State | None:
    """Return the state of a finished or pruned trial of a study. None for other runs."""
    if not (path.parent / STUDY).exists():
        return None
    ended = (TrialState.FINISHED, TrialState.PRUNED)
    try:
        trials = read_study(path.parent).trials
    except UserError:  # A damaged study.json does not damage the trials.
        return None
    for trial in trials:
        if path.name == f"trial{trial.number}" and trial.state in ended:
            return State(trial.state)
    return None


def _minutes_left(run: RunRecord) -> float | None:
    if not run.rows:
        return None
    before = run.rows[-2].wall_seconds if run.rows[1:] else 0.0
    seconds = run.rows[-1].wall_seconds - before
    return seconds * (run.epochs - run.rows[-1].epoch) / 60


def _age_minutes(path: Path) -> float:
    files = [path / name for name in ("config.json", "metrics.jsonl", "result.json")]
    newest = max(file.stat().st_mtime for file in files if file.exists())
    return max(0.0, (time.time() - newest) / 60)
