"""The content of study.json: the trials of a study, and the importance of each setting.

`cifar-jax tune` writes the file, and reports read it. JAX and Optuna are not imported.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import model_validator

from cifar_jax.config import as_text
from cifar_jax.errors import counted
from cifar_jax.report.charts import Chart, chart
from cifar_jax.runs.reading import STUDY
from cifar_jax.runs.schemas import FORMAT, Stored, read

FILE = STUDY


class TrialState(StrEnum):
    """State of a trial."""

    RUNNING = "running"
    """The trial is training, or was interrupted."""
    FINISHED = "finished"
    PRUNED = "pruned"
    """The trial was stopped early, because it was worse than other trials or diverged."""
    FAILED = "failed"
    """The trial ended with an error."""


class Trial(Stored):
    """A trial of a study: one run with its own values of the searched settings."""

    number: int
    """Number of the trial, counted from 0. The run folder is `trialN`."""
    state: TrialState
    values: dict[str, Any]
    """Values of the searched settings, by dotted name."""
    accuracies: dict[int, float]
    """Validation accuracy in percent after each finished epoch, by number of the epoch."""
    validation_accuracy: float | None
    """Validation accuracy in percent after the last epoch. None if the trial is not finished."""


class Study(Stored):
    """The content of study.json."""

    format: Literal[1] = FORMAT
    experiment: str
    """Name of the experiment file, such as `fast-basic`."""
    seed: int
    """Random seed of every trial. It also determines which values the search tries."""
    settings: dict[str, Any]
    """Every setting that the trials share, by dotted name."""
    search: dict[str, Any]
    """Values that each searched setting may take: a list, or an object with low, high and log."""
    code_sha256: str
    """Digest of the experiment file's code, without its settings."""
    trials: list[Trial]
    importances: dict[str, float]
    """Importance of each searched setting, by dotted name, largest first. The importance measures
    how strongly the setting affects whether a trial is in the best quarter. The sum is 1. Empty if
    there are too few trials."""

    @model_validator(mode="after")
    def _sorted(self) -> Self:
        self.trials.sort(key=lambda trial: trial.number)
        return self

    @property
    def ranking(self) -> list[Trial]:
        """The finished trials, the most accurate first."""
        finished = [trial for trial in self.trials if trial.state == TrialState.FINISHED]
        return sorted(finished, key=lambda trial: -(trial.validation_accuracy or 0))

    @property
    def summary(self) -> str:
        """One line: the number of trials, and the best trial."""
        text = f"Study of {self.experiment}: {counted(len(self.trials), 'trial')}"
        if not self.ranking:
            return f"{text}, none finished"
        best = self.ranking[0]
        values = " ".join(f"{name}={as_text(value)}" for name, value in best.values.items())
        return f"{text}. Best: {best.validation_accuracy:.2f} % validation accuracy with {values}"

    @property
    def history(self) -> Chart | None:
        """Chart of validation accuracy by trial. None if no trial has finished an epoch.

        The lines are the best accuracy so far, the finished trials and the pruned trials.
        """
        last = {
            state: {
                trial.number: list(trial.accuracies.values())[-1]
                for trial in self.trials
                if trial.state == state and trial.accuracies
            }
            for state in (TrialState.FINISHED, TrialState.PRUNED)
        }
        finished = last[TrialState.FINISHED]
        best = dict(zip(finished, itertools.accumulate(finished.values(), max), strict=True))
        curves = {"best so far": best, "finished": finished, "pruned": last[TrialState.PRUNED]}
        return chart(
            "Validation accuracy, %",
            [(name, i, [curve] if curve else []) for i, (name, curve) in enumerate(curves.items())],
        )


def read_study(folder: Path) -> Study:
    """Return the study in a folder.

    Raises:
      UserError: the folder has no study.json, or the file is damaged.
    """
    return read(folder / FILE, Study, "Restore it from a backup, or choose another --workdir.")


def find_studies(paths: Sequence[Path]) -> Iterator[Path]:
    """Yield the folders of studies in `paths`, at any depth."""
    for path in paths:
        yield from (file.parent for file in sorted(path.rglob(FILE)))
