"""`train.max_minutes`: a plan that is fitted into the time that there is."""

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from short_runs import Spy, rows_of, send, train
from tiny import TINY

from cifar_jax.config import Config, override
from cifar_jax.errors import Stopped, UserError
from cifar_jax.inference.evaluate import evaluate
from cifar_jax.runs.checkpoints import Checkpoints
from cifar_jax.training import compilation, loop, plan, setup

Make = Callable[..., Config]
pytestmark = pytest.mark.usefixtures("tiny")


def fitted(config: Config, begun: int, pixels: float) -> list[tuple[int, int]]:
    """Image size and steps of each epoch of what fits, when so many epochs have begun."""
    full = plan.make(config, 32, 32)
    found = plan.fitted(config, 32, 32, full.epochs[:begun], pixels)
    assert [e.begin for e in found.epochs] == [0, *np.cumsum([e.steps for e in found.epochs])[:-1]]
    assert plan.from_json(plan.as_json(found, full.stages), full.stages) == found
    return [(e.stage.image_size, e.steps) for e in found.epochs]


def test_a_plan_is_fitted_into_what_there_is_time_for(make_config: Make) -> None:
    config = make_config(
        **TINY | {"epochs": 8, "schedule__name": "linear"},
        phases='[{"until": 0.5, "image_size": 16}]',
    )
    small, large = 8 * 16**2, 8 * 32**2
    whole = 4 * 4 * (small + large)
    assert fitted(config, 1, whole) == [(16, 4)] * 4 + [(32, 4)] * 4
    assert fitted(config, 1, 10 * whole) == [(16, 4)] * 4 + [(32, 4)] * 4
    # Half of it: more than half of the epochs are small, and the last is cut short.
    assert fitted(config, 1, whole / 2) == [(16, 4)] * 3 + [(32, 4), (32, 3)]
    assert fitted(config, 1, whole / 2 - 2.5 * large) == [(16, 4)] * 2 + [(32, 4), (32, 1)]
    # Less than the first epoch: that is cut.
    assert fitted(config, 1, 3 * small) == [(16, 3)]
    # What has begun stays, whatever comes after.
    assert fitted(config, 3, whole / 2)[:3] == [(16, 4)] * 3
    # What is over is over, though its time was up before it was.
    assert fitted(config, 3, 8 * small) == fitted(config, 3, 3 * small) == [(16, 4)] * 2


def test_a_plan_may_have_stages_that_a_longer_one_passes_over(make_config: Make) -> None:
    """Of 17 epochs none begins between two fifths and 0.41 of the run; of 15 one does."""
    config = make_config(
        **TINY | {"model__name": "pooled", "epochs": 17, "schedule__name": "linear"},
        phases='[{"until": 0.41, "image_size": 16}]',
        param_groups='[{"parameters": "*/bias", "until": 0.4, "optimizer": {}}]',
        train__max_minutes=5,
    )
    workload = setup.workload(config)
    full = workload.plan
    state = setup.init_state(workload, 0)
    training = compilation.compile_training(workload, 0, state, compilation.train_data(workload))
    passed_over = []
    for pixels in range(0, full.pixels_before(full.steps), 8 * 32**2):
        found = plan.fitted(config, 32, 32, full.epochs[:1], pixels)
        assert plan.from_json(plan.as_json(found, workload.stages), workload.stages) == found
        passed_over += [epoch for epoch in found.epochs if epoch.stage not in full.stages]
    assert {(epoch.stage.image_size, epoch.stage.frozen) for epoch in passed_over} == {(16, (1,))}
    epoch = passed_over[0]
    after = training.begin(epoch, training.order(epoch), 60)(state, 2)
    assert int(after.step) == 2


def test_what_is_over_does_not_come_back_when_there_is_more_time(make_config: Make) -> None:
    config = make_config(
        **TINY | {"model__name": "pooled", "epochs": 40, "schedule__name": "linear"},
        phases='[{"until": 0.2, "image_size": 16}]',
        param_groups='[{"parameters": "*/bias", "until": 0.3, "optimizer": {}}]',
    )
    of_ten = plan.make(override(config, ["epochs=10"]), 32, 32)
    grown = plan.fitted(config, 32, 32, of_ten.epochs[:4], 10**9)
    assert len(grown.epochs) == 40
    assert grown.epochs[:4] == of_ten.epochs[:4]
    assert {(e.stage.image_size, e.stage.frozen) for e in grown.epochs[3:]} == {(32, (1,))}


def test_what_there_is_time_for_goes_by_the_speed_of_this_start(make_config: Make) -> None:
    """Not by that of the run, whose earlier starts may have been on another machine."""
    config = make_config(**TINY | {"epochs": 40, "schedule__name": "linear"}, train__max_minutes=1)
    workload, progress, unused = setup.workload(config), loop.Progress(0.0), [None] * 4
    trainer = loop.Trainer(config, 0, workload, *unused, progress, [])
    trainer.origin, trainer.fitted_at = (30.0, trainer.plan.pixels_before(20)), 30.0
    epochs = trainer.plan.epochs
    assert not trainer._refit(epochs[5], step=21, elapsed=30.5)  # too soon to tell
    assert len(trainer.plan.epochs) == 40
    # 21 steps in ten seconds: 42 more in the twenty that are left.
    assert trainer._refit(epochs[10], step=41, elapsed=40.0)
    assert trainer.plan.steps == 41 + 42
    assert loop.planned(workload, progress.epochs) == trainer.plan
    # At that speed nothing changes.
    assert not trainer._refit(epochs[15], step=62, elapsed=50.0)
    assert trainer.plan.steps == 41 + 42
    # The time is up: what was done is all there is, and no step less.
    assert trainer._refit(epochs[15], step=63, elapsed=61.0)
    assert trainer.plan.steps == 63


def test_time_that_was_lost_by_going_back_is_no_measure_of_speed(
    make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock on which each look takes a second; the loss is not finite once, in epoch 1."""
    clock, calls, origins = iter(range(10**6)), iter(range(10**6)), []
    for module in ("loop", "fit"):
        name = f"cifar_jax.training.{module}.time.perf_counter"
        monkeypatch.setattr(name, lambda: float(next(clock)))
    sums, refit = loop.loss_sums, loop.Trainer._refit

    def observed(self: loop.Trainer, *args: Any) -> bool:
        origins.append(self.origin[0])
        return refit(self, *args)

    def counted(self: Checkpoints, *args: Any, whole: bool = True, **options: Any) -> None:
        saves.append(whole)
        save(self, *args, whole=whole, **options)

    save, saves = Checkpoints.save, []
    monkeypatch.setattr(Checkpoints, "save", counted)
    monkeypatch.setattr(loop.Trainer, "_refit", observed)
    monkeypatch.setattr(
        loop, "loss_sums", lambda state: (np.nan, 1) if next(calls) == 10 else sums(state)
    )
    config = make_config(
        **TINY | {"epochs": 500, "batch_size": 1, "schedule__name": "linear"},
        **{"train__max_minutes": 5, "train__steps_per_call": 1, "train__on_nan": "restore"},
        train__checkpoint_minutes=1,
    )
    result = train(config, tmp_path / "run", display := Spy())
    assert [line for line in display.lines if "back to step 0 with half" in line]
    assert len(set(origins)) == 2
    assert max(origins) - min(origins) > 20
    assert 1 <= saves.count(False) <= 5  # one a minute, of epochs that take longer
    assert 240 < result["wall_seconds"] < 330
    assert result["steps"] > 40


@pytest.fixture
def planned_steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The run's steps as each of its epochs and new plans has them. By a clock on which each look
    takes a second."""
    clock = iter(range(10**6))
    for module in ("loop", "fit"):
        name = f"cifar_jax.training.{module}.time.perf_counter"
        monkeypatch.setattr(name, lambda: float(next(clock)))
    compile_training, ends = compilation.compile_training, []

    def observed(*args: Any) -> compilation.CompiledSteps:
        made = compile_training(*args)

        def begin(epoch: plan.Epoch, order: jax.Array, run_steps: int) -> compilation.StepsFn:
            ends.append(run_steps)
            return made.begin(epoch, order, run_steps)

        return made._replace(begin=begin)

    monkeypatch.setattr(compilation, "compile_training", observed)
    return ends


def long_run(make_config: Make, **settings: Any) -> Config:
    """Of more epochs than its five minutes have room for."""
    return make_config(
        **TINY | {"epochs": 500, "schedule__name": "linear"} | settings,
        train__max_minutes=5,
        train__steps_per_call=1,
    )


def test_a_run_ends_in_its_minutes_with_its_schedule_done(
    make_config: Make, tmp_path: Path, planned_steps: list[int]
) -> None:
    config = long_run(make_config)
    result = train(config, tmp_path / "run")
    assert planned_steps[-1] == result["steps"]  # by which the learning rate has gone to its end
    rows = rows_of(tmp_path / "run")
    assert 4 < result["epochs"] == len(rows) < 40
    assert rows[-1]["step"] == result["steps"]
    assert rows[-1]["learning_rate"] < 0.05 * 0.1
    assert 240 < result["wall_seconds"] < 330
    assert evaluate(tmp_path / "run")["epoch"] == result["epochs"]
    again = train(config, tmp_path / "run")  # it is found finished
    assert again["params_sha256"] == result["params_sha256"]


def test_a_run_that_was_stopped_keeps_its_plan_and_its_minutes(
    make_config: Make, tmp_path: Path, planned_steps: list[int]
) -> None:
    config = long_run(make_config)
    with pytest.raises(Stopped):
        train(config, tmp_path, Spy("[EPOCH 003 | IT 00002]", send(signal.SIGTERM)))
    stopped, full = planned_steps[-1], 500 * 4
    assert stopped < full / 4
    del planned_steps[:]
    result = train(config, tmp_path)
    assert planned_steps[0] == stopped
    assert planned_steps[-1] == result["steps"]
    assert 240 < result["wall_seconds"] < 330


@pytest.mark.usefixtures("planned_steps")
def test_an_average_that_there_was_no_time_for_is_told_with_the_way_out(
    make_config: Make, tmp_path: Path
) -> None:
    averaging = {"averaging__name": "lookahead", "averaging__every": 1000}
    config = long_run(make_config, **averaging)
    with pytest.raises(UserError, match=r"averaging\.every is 1000.*begin anew \(--fresh\)"):
        train(config, tmp_path)
