"""Test hyperparameter studies: evaluated images, interruption, pruning, and written files."""

import json
import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from short_runs import Recorder
from tiny import DATASET, TINY

from cifar_jax import catalog
from cifar_jax.callbacks.base import Callback
from cifar_jax.catalog import Experiment
from cifar_jax.cli.train import Folders, make_request
from cifar_jax.config import Config, Range, flatten, override
from cifar_jax.errors import Diverged, UserError
from cifar_jax.report.study import Study, TrialState, read_study
from cifar_jax.runs.folder import RunFolder
from cifar_jax.runs.reading import run_folders
from cifar_jax.runs.schemas import MetricsRow
from cifar_jax.settings import search
from cifar_jax.training import train as training
from cifar_jax.training.request import RunRequest

optuna = pytest.importorskip("optuna", reason="needs the extra `tune`")

from cifar_jax.tuning import tuner as tuners  # noqa: E402
from cifar_jax.tuning.files import StudySpec, best_file  # noqa: E402
from cifar_jax.tuning.tuner import Tuner  # noqa: E402

Make = Callable[..., Config]
pytestmark = pytest.mark.usefixtures("tiny")
SPACE = {"optimizer.lr": Range(0.001, 1.0, log=True), "batch_size": [4, 8]}


def accuracy(config: Config, epoch: int) -> float:
    """Return a simulated validation accuracy, which is higher for smaller learning rates."""
    return epoch * (5 - math.log10(config.optimizer.lr)) + config.batch_size / 100


def simulated(request: RunRequest, callbacks: Sequence[Callback], progress: object) -> None:
    """Simulate `train` without a network. A resumed run repeats its last epoch."""
    assert not request.evaluate_test
    config, folder = request.config, RunFolder(request.workdir)
    if config.optimizer.lr > 1e20:
        raise Diverged("the loss is NaN or infinite")
    request.workdir.mkdir(exist_ok=True)
    rows = folder.rewind(max(0, len(folder.rows()) - 1))
    epochs = range(config.epochs)
    context: Any = SimpleNamespace(setup=SimpleNamespace(plan=SimpleNamespace(epochs=epochs)))
    for callback in callbacks:
        callback.on_start(context, state=None)  # pyright: ignore
    for epoch in epochs[len(rows) :]:
        names = set(MetricsRow.model_fields) - {"validation_accuracy"}
        values: Any = dict.fromkeys(names, 1) | {"epoch": epoch + 1}
        row = MetricsRow(**values, validation_accuracy=accuracy(config, epoch + 1))
        folder.append_row(row)
        for callback in callbacks:
            callback.on_epoch_end(None, row)  # pyright: ignore


@pytest.fixture
def simulation(monkeypatch) -> None:
    monkeypatch.setattr(tuners, "train", simulated)


@pytest.fixture
def make_spec(make_config: Make, tmp_path: Path) -> Callable[..., StudySpec]:
    base = make_config(**TINY | {"model__name": "dense", "epochs": 3})

    def make(name: str = "study", space: Any = SPACE, **fields: Any) -> StudySpec:
        experiment = Experiment("lab", base, "", None, Path("lab.py"), None)
        spec = StudySpec(
            folder=tmp_path / name,
            experiment=experiment,
            source="lab",
            overrides=[],
            config=base,
            space=search.check(base, space),
            seed=0,
            make_request=lambda config, path: make_request(
                experiment, config, 0, Folders(path, single=True, seeds=False)
            ),
        )
        return spec._replace(**fields)

    return make


def run(spec: StudySpec, trials: int) -> Study:
    Tuner(spec, lambda line: None).run(trials)
    return read_study(spec.folder)


def test_a_study_evaluates_only_validation_images(make_spec, monkeypatch) -> None:
    evaluated = []
    compile_evaluation = training.compile_evaluation

    def record(setup: Any, state: Any, images: Any, **options: Any) -> Any:
        evaluated.append(images)
        return compile_evaluation(setup, state, images, **options)

    monkeypatch.setattr(training, "compile_evaluation", record)
    monkeypatch.setattr(tuners, "Progress", Recorder)
    spec = make_spec()
    (trial,) = run(spec, 1).trials
    assert trial.state == TrialState.FINISHED
    assert [len(images) for images in evaluated] == [TINY["data__validation"]]
    assert len(DATASET.test.labels) != TINY["data__validation"]
    assert not list(spec.folder.rglob("result.json"))
    rows = [json.loads(t) for t in (spec.folder / "trial0/metrics.jsonl").read_text().splitlines()]
    assert [row["validation_accuracy"] for row in rows] == list(trial.accuracies.values())
    assert trial.validation_accuracy == rows[-1]["validation_accuracy"]
    # A report about all runs leaves out the trials of a study.
    assert list(run_folders(spec.folder.parent)) == []
    assert len(list(run_folders(spec.folder))) == 1


@pytest.mark.usefixtures("simulation")
def test_a_killed_study_continues_with_the_same_trials(make_spec, monkeypatch) -> None:
    undisturbed = run(make_spec("undisturbed"), 4)
    assert len({trial.values["optimizer.lr"] for trial in undisturbed.trials}) == 4
    spec = make_spec("killed")
    report, calls = tuners._Report.on_epoch_end, []

    def killed(self: Any, state: Any, metrics: Any) -> None:
        report(self, state, metrics)
        calls.append(metrics.epoch)
        if len(calls) == 5:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tuners._Report, "on_epoch_end", killed)
        with pytest.raises(KeyboardInterrupt):
            run(spec, 4)
    assert read_study(spec.folder).trials[1].state == TrialState.RUNNING
    with (spec.folder / "journal.jsonl").open("a") as journal:
        journal.write('{"op_code":')  # A killed process left an incomplete line.
    assert run(spec, 4) == undisturbed
    assert run(spec, 4) == undisturbed


@pytest.mark.usefixtures("simulation")
def test_processes_share_a_study(make_spec) -> None:
    spec = make_spec()
    ours = Tuner(spec, lambda line: None)
    claim = ours._claim(3)
    assert claim
    theirs = run(spec, 3)
    states = [trial.state for trial in theirs.trials]
    assert states == [TrialState.RUNNING, TrialState.FINISHED, TrialState.FINISHED]
    claim.lock.release()
    assert [trial.state for trial in run(spec, 3).trials] == [TrialState.FINISHED] * 3


@pytest.mark.usefixtures("simulation")
def test_a_trial_that_diverges_does_not_end_the_study(make_spec) -> None:
    space = {"optimizer.lr": [1e30], "batch_size": [4, 8]}
    study = run(make_spec(space=space), 2)
    assert [trial.state for trial in study.trials] == [TrialState.PRUNED] * 2
    assert study.ranking == []


@pytest.mark.usefixtures("simulation")
def test_values_that_contradict_each_other_are_left_out(make_spec) -> None:
    space = {"data.mixup": [0.0, 1.0], "data.cutmix": [0.0, 1.0]}
    study = run(make_spec(space=space), 8)
    # The first trial has the values of the experiment.
    assert study.trials[0].values == {"data.mixup": 0, "data.cutmix": 0}
    for trial in study.trials:
        assert (trial.state == TrialState.PRUNED) == all(trial.values.values())
    assert any(trial.state == TrialState.PRUNED for trial in study.trials)


@pytest.mark.usefixtures("simulation")
def test_a_trial_below_the_median_is_pruned(make_spec) -> None:
    study = run(make_spec(space={"optimizer.lr": Range(1e-9, 0.5, log=True)}), 12)
    for trial in study.trials:
        earlier = [t for t in study.trials[: trial.number] if t.state == TrialState.FINISHED]
        is_worse = False
        if len(earlier) >= 5:
            is_worse = trial.accuracies[2] < statistics.median(t.accuracies[2] for t in earlier)
        assert (trial.state == TrialState.PRUNED) == is_worse
        assert list(trial.accuracies) == ([1, 2] if is_worse else [1, 2, 3])
    assert any(trial.state == TrialState.PRUNED for trial in study.trials)


def test_importances_name_the_setting_that_matters() -> None:
    distributions = {name: optuna.distributions.FloatDistribution(0, 1) for name in "ab"}
    trials = []
    for number in range(20):
        params = {"a": number / 20, "b": number * 7 % 20 / 20}
        pruned = number < 12
        trials.append(
            optuna.trial.create_trial(
                state=optuna.trial.TrialState.PRUNED
                if pruned
                else optuna.trial.TrialState.COMPLETE,
                params=params,
                distributions=distributions,
                value=None if pruned else params["a"],
                intermediate_values={1: params["a"]},
            )
        )
    importances = tuners._importances(trials)
    assert sum(importances.values()) == pytest.approx(1)
    assert next(iter(importances)) == "a"
    assert importances["a"] > 0.8
    assert tuners._importances(trials[:7]) == {}


@pytest.mark.usefixtures("simulation")
def test_the_best_settings_are_an_experiment(make_spec, tmp_path: Path) -> None:
    source = tmp_path / "lab.py"
    source.write_text(
        "from cifar_jax.config import *\n"
        "CONFIG = Config(model=Model(name='dense'), epochs=3, batch_size=8, "
        "optimizer=Optimizer(), data=Data(validation=0))\n"
        "def SCHEDULE(info):\n    return 1.0\n"
    )
    experiment = catalog.load(str(source))
    overrides = ["epochs=4", "data.validation=8"]
    spec = make_spec(experiment=experiment, source=str(source), overrides=overrides)
    best = run(spec, 3).ranking[0]
    loaded = catalog.load(str(best_file(spec)))
    assert loaded.name == "lab-best"
    assert loaded.custom
    assert loaded.custom.schedule
    changed = {"epochs": 4, **best.values}
    assert flatten(loaded.config) == flatten(experiment.config) | changed
    # A schedule that observes the validation loss keeps the validation images of the study.
    plateau = override(spec.config, ["schedule.name=plateau", "data.validation=8"])
    spec = spec._replace(folder=tmp_path / "plateau", config=plateau)
    run(spec._replace(overrides=[*overrides, "schedule.name=plateau"]), 1)
    assert catalog.load(str(best_file(spec))).config.data.validation == 8


def test_a_trial_that_fails_is_not_shown_as_running(make_spec, monkeypatch) -> None:
    def fail(*arguments: object) -> None:
        raise UserError("no images")

    monkeypatch.setattr(tuners, "train", fail)
    spec = make_spec()
    with pytest.raises(UserError, match="no images"):
        run(spec, 1)
    assert [trial.state for trial in read_study(spec.folder).trials] == [TrialState.FAILED]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, "holds another study: seed is 0 in the folder and 1 in this command"),
        ({"space": {"batch_size": [4, 8]}}, "SEARCH of optimizer.lr is {"),
        (
            {"experiment": Experiment("other", None, "", None, Path(), None)},
            "a study of lab, not of other",
        ),  # pyright: ignore
    ],
)
def test_the_folder_of_another_study_is_refused(make_spec, change: Any, message: str) -> None:
    spec = make_spec()
    Tuner(spec, lambda line: None)
    with pytest.raises(UserError) as error:
        Tuner(spec._replace(**change), lambda line: None)
    assert message in str(error.value)
