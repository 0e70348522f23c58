"""A loss or weights that are no longer finite: what is kept, and how a run goes on."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from short_runs import STEPS, Spy, assert_same_run, rows_of, train

from cifar_jax.config import Config
from cifar_jax.errors import UserError
from cifar_jax.inference.evaluate import evaluate
from cifar_jax.training import compilation, loop

Make = Callable[..., Config]

loop_sums = loop.loss_sums


def diverging(at: int, times: int = 1) -> Callable[..., Any]:
    """`loss_sums` that is not finite `times` times from step `at` on."""
    left = [times]

    def sums(state: Any) -> tuple[float, int]:
        if int(state.step) >= at and left[0]:
            left[0] -= 1
            return float("nan"), 1
        return loop_sums(state)

    return sums


def test_the_last_good_checkpoint_outlives_a_loss_that_diverges(
    config: Config, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(loop, "loss_sums", diverging(at=STEPS + 3))
        told = r"not finite in epoch 2, by step [45]\d: .*the checkpoint of step 40 is kept"
        with pytest.raises(UserError, match=told):
            train(config, tmp_path)
    assert len(rows_of(tmp_path)) == 1
    assert evaluate(tmp_path)["epoch"] == 1
    train(config, tmp_path)
    assert_same_run(tmp_path, finished)


def test_a_loss_that_diverges_goes_on_with_half_the_rate_where_that_is_asked_for(
    make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(epochs=3, train__on_nan="restore")
    display = Spy()
    with monkeypatch.context() as patch:
        patch.setattr(loop, "loss_sums", diverging(at=12, times=2))
        train(config, tmp_path / "run", display)
    back = [line for line in display.lines if "half the learning rate" in line]
    assert [line.partition(": back to ")[2] for line in back] == [
        "step 8 with half the learning rate, 0.025",
        "step 8 with half the learning rate, 0.0125",
    ]
    rows = rows_of(tmp_path / "run")
    assert [row["learning_rate"] for row in rows] == [0.05, 0.0125, 0.0125]
    with monkeypatch.context() as patch:
        patch.setattr(loop, "loss_sums", diverging(at=12, times=9))
        with pytest.raises(
            UserError,
            match=r"lower optimizer\.lr \(0\.05 in epoch 1\), which was halved 3 times; the check",
        ):
            train(config, tmp_path / "never")


def test_weights_that_are_not_finite_are_never_saved(
    make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compilation, "is_finite", lambda state: int(state.step) < 9)
    with pytest.raises(UserError, match="the weights are not finite after step 16"):
        train(make_config(), tmp_path)
    assert evaluate(tmp_path)["step"] == 8


def test_a_validation_loss_that_is_not_finite_ends_the_run_too(
    make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = iter([{"loss": 1.0, "accuracy": 50.0}, {"loss": float("nan"), "accuracy": 10.0}])
    monkeypatch.setattr(loop, "measure", lambda *_: next(measured))
    with pytest.raises(UserError, match=r"^the validation loss is not finite after epoch 2: lower"):
        train(make_config(epochs=3), tmp_path)
    assert len(rows_of(tmp_path)) == 1
