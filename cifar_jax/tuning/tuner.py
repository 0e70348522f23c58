"""Train the trials of a study with Optuna.

A study is a folder of trials. Each trial is a run with its own values of the searched settings.
Optuna's journal in the folder holds the state of the study, so a stopped study continues, and
several processes may share a study. Trials are compared by their validation accuracy. The test
images are never evaluated.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import filelock
import jax
import numpy as np
import optuna
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock, JournalStorage
from optuna.trial import FrozenTrial, TrialState

from cifar_jax.callbacks.base import Callback, RunContext
from cifar_jax.callbacks.progress import Progress
from cifar_jax.config import override
from cifar_jax.errors import Diverged, UserError
from cifar_jax.files import write_bytes, write_json
from cifar_jax.report import study as schemas
from cifar_jax.report.study import FILE
from cifar_jax.runs.folder import RunFolder
from cifar_jax.runs.lock import lock
from cifar_jax.runs.schemas import MetricsRow, dump
from cifar_jax.settings import search
from cifar_jax.training.train import train
from cifar_jax.tuning.files import (
    StudySpec,
    best_experiment,
    best_file,
    check_folder,
    empty_study,
)
from cifar_jax.tuning.space import as_params, distribution, experiment_values, from_params

if TYPE_CHECKING:
    from cifar_jax.training.step import TrainState

_STATES = {
    TrialState.RUNNING: schemas.TrialState.RUNNING,
    TrialState.WAITING: schemas.TrialState.RUNNING,
    TrialState.COMPLETE: schemas.TrialState.FINISHED,
    TrialState.PRUNED: schemas.TrialState.PRUNED,
    TrialState.FAIL: schemas.TrialState.FAILED,
}
_TRIALS_BEFORE_PRUNING = 5
_TRIALS_FOR_IMPORTANCES = 8
_TOP_SHARE = 0.25
"""Fraction of the trials that count as the best trials. For example, 5 of 20 trials count."""


class _Claim(NamedTuple):
    """A trial that this process trains."""

    trial: optuna.Trial
    lock: filelock.FileLock
    """Lock of the trial. It is held during training, so no other process continues the trial."""


class Tuner:
    """Trains the trials of a study.

    Args:
      spec: the study.
      say: a function that prints a line.

    Raises:
      UserError: the folder holds another study or other files, or cannot be locked.
    """

    def __init__(self, spec: StudySpec, say: Callable[[str], object]) -> None:
        self.spec, self._say = spec, say
        self._distributions = {name: distribution(v) for name, v in spec.space.items()}
        spec.folder.mkdir(parents=True, exist_ok=True)
        with self._locked():
            check_folder(spec)
            optuna.logging.set_verbosity(optuna.logging.ERROR)
            self._study = optuna.create_study(
                study_name="study",
                storage=JournalStorage(_open_journal(spec.folder / "journal.jsonl")),
                direction="maximize",
                # Do not prune early, because schedules make the first epochs hard to compare.
                pruner=optuna.pruners.MedianPruner(
                    _TRIALS_BEFORE_PRUNING, n_warmup_steps=max(2, math.ceil(spec.config.epochs / 4))
                ),
                load_if_exists=True,
            )
            self._write()

    def run(self, trials: int) -> None:
        """Train until the study has `trials` trials, including those of other processes.

        Raises:
          Stopped: a signal arrived. The same call continues the study.
          UserError: a trial failed.
        """
        while claim := self._claim(trials):
            with claim.lock:
                self._run_trial(claim)
            with self._locked():
                self._write()

    def _locked(self) -> filelock.AcquireReturnProxy:
        return lock(self.spec.folder, timeout=60)

    def _claim(self, trials: int) -> _Claim | None:
        """Return an interrupted trial or a new trial, or None if there are enough trials."""
        study, seed = self._study, self.spec.seed
        with self._locked():
            known = study.get_trials(deepcopy=False)
            for number in [trial.number for trial in known if trial.state == TrialState.RUNNING]:
                if held := self._hold(number):
                    trial = study.get_trials(deepcopy=False)[number]
                    if trial.params.keys() != self._distributions.keys():
                        # The process was killed before the trial had values for all settings.
                        study.tell(number, state=TrialState.FAIL)
                        known = study.get_trials(deepcopy=False)
                    elif trial.state == TrialState.RUNNING:
                        return _Claim(optuna.trial.Trial(study, trial._trial_id), held)
                    held.release()
            if sum(trial.state != TrialState.FAIL for trial in known) >= trials:
                return None
            # Give each trial a sampler with a seed of its own. With one sampler for all trials, a
            # resumed study would draw the values of its first trials again.
            entropy = np.random.SeedSequence([seed, len(known)])
            study.sampler = optuna.samplers.TPESampler(seed=int(entropy.generate_state(1)[0]))
            has_begun = any(trial.params for trial in known)
            if not has_begun and (values := experiment_values(self.spec.space, self.spec.config)):
                study.enqueue_trial(as_params(self.spec.space, values))
            trial = study.ask(self._distributions)
            held = self._hold(trial.number)
            assert held, "a new trial is used by no other process"
            self._write()
            return _Claim(trial, held)

    def _hold(self, number: int) -> filelock.FileLock | None:
        """Lock a trial, and return the lock, or None if another process trains the trial."""
        handle = filelock.FileLock(self.spec.folder / f".trial{number}.lock")
        try:
            handle.acquire(timeout=0)
        except filelock.Timeout:
            return None
        return handle

    def _run_trial(self, claim: _Claim) -> None:
        trial, study = claim.trial, self._study
        values = from_params(self.spec.space, trial.params)
        folder, name = self.spec.folder / f"trial{trial.number}", f"trial {trial.number}"
        note = ""
        if values == experiment_values(self.spec.space, self.spec.config):
            note = " (the experiment's own values)"
        self._say(f"\n{name}: {' '.join(search.changes(values))}{note}")
        reported = study.get_trials(deepcopy=False)[trial.number].intermediate_values
        try:
            config = override(self.spec.config, search.changes(values))
        except UserError as error:  # Skip values that contradict each other.
            study.tell(trial, state=TrialState.PRUNED)
            self._say(f"{name} is left out: {str(error).removeprefix('--set ')}")
            return
        request = self.spec.make_request(config, folder)._replace(evaluate_test=False)
        try:
            train(request, [_Report(trial, set(reported))], Progress())
        except optuna.TrialPruned as pruned:
            study.tell(trial, state=TrialState.PRUNED)
            self._say(f"{name} is pruned {pruned}")
        except Diverged as error:
            study.tell(trial, state=TrialState.PRUNED)
            self._say(f"{name} is pruned: {str(error).partition('.')[0]}")
        except Exception:
            study.tell(trial, state=TrialState.FAIL)
            with self._locked():
                self._write()
            raise
        else:
            accuracy = RunFolder(folder).rows()[-1].validation_accuracy
            study.tell(trial, accuracy)
            self._say(f"{name}: validation accuracy {accuracy:.2f} %")
        jax.clear_caches()  # Free the memory of the trial's programs.

    def _write(self) -> None:
        """Write study.json and the experiment file of the best trial."""
        spec, trials = self.spec, self._study.get_trials(deepcopy=False)
        study = empty_study(spec).model_copy(
            update={
                "trials": [self._trial(trial) for trial in trials],
                "importances": _importances(trials),
            }
        )
        write_json(spec.folder / FILE, dump(study))
        if study.ranking:
            path = best_file(spec)
            write_bytes(path, best_experiment(spec, study, path).encode())

    def _trial(self, trial: FrozenTrial) -> schemas.Trial:
        return schemas.Trial(
            number=trial.number,
            state=_STATES[trial.state],
            values=from_params(self.spec.space, trial.params),
            accuracies=dict(sorted(trial.intermediate_values.items())),
            validation_accuracy=trial.value if trial.state == TrialState.COMPLETE else None,
        )


class _Report(Callback):
    """Reports the validation accuracy of each epoch to Optuna, and ends a trial that is pruned.

    Args:
      trial: the trial.
      reported: epochs that an earlier session reported.
    """

    def __init__(self, trial: optuna.Trial, reported: set[int]) -> None:
        self._trial, self._reported = trial, reported

    def on_start(self, context: RunContext, state: TrainState) -> None:
        self._epochs = len(context.setup.plan.epochs)

    def on_epoch_end(self, state: TrainState, metrics: MetricsRow) -> None:
        accuracy, epoch = metrics.validation_accuracy, metrics.epoch
        assert accuracy is not None, "a study has validation images"
        if epoch not in self._reported:
            self._trial.report(accuracy, epoch)
        if epoch < self._epochs and self._trial.should_prune():
            raise optuna.TrialPruned(f"after epoch {epoch}: validation accuracy {accuracy:.2f} %")


def _open_journal(path: Path) -> JournalFileBackend:
    """Open the journal. If a killed process left an incomplete last line, remove the line."""
    journal, handle = JournalFileBackend(str(path)), JournalFileSymlinkLock(str(path))
    handle.acquire()
    try:
        content = path.read_bytes()
        if not content.endswith(b"\n") and content:
            os.truncate(path, content.rfind(b"\n") + 1)
    finally:
        handle.release()
    return journal


def _importances(trials: Sequence[FrozenTrial]) -> dict[str, float]:
    """Return the importance of each setting by PED-ANOVA (Watanabe et al., arXiv:2304.10255).

    For a pruned trial, the last accuracy is used. Optuna itself would leave out the trial.
    """
    ended = [t for t in trials if t.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    if len(ended) < _TRIALS_FOR_IMPORTANCES:
        return {}
    study = optuna.create_study(direction="maximize")
    for trial in ended:
        last = trial.intermediate_values[trial.last_step] if trial.last_step is not None else 0.0
        study.add_trial(
            optuna.trial.create_trial(
                params=trial.params, distributions=trial.distributions, value=last
            )
        )
    evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=_TOP_SHARE)
    # Hide Optuna's warning that all accuracies are equal.
    with warnings.catch_warnings(action="ignore"):
        return optuna.importance.get_param_importances(study, evaluator=evaluator)
