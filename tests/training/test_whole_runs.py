"""Test that whole runs equal reference runs in NumPy, and that stopped runs resume exactly."""

import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import by_hand
import chex
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from short_runs import Recorder, assert_same_run, kill, result_of, rows_of, send, train
from tiny import DATASET, TINY

from cifar_jax import models
from cifar_jax.config import Config
from cifar_jax.errors import Stopped
from cifar_jax.training import train as training

SEED = 3
# The seed is not the default. A test therefore fails if training ignores the seed.
train = partial(train, seed=SEED)
pytestmark = [
    pytest.mark.usefixtures("tiny"),
    # Orbax warns, because the function `saved` does not name the devices for the arrays.
    pytest.mark.filterwarnings("ignore:Sharding info not provided"),
]


@pytest.fixture(scope="module")
def small(make_config: Callable[..., Config]) -> Config:
    """Config of a short run that changes every part of the train state."""
    return make_config(
        **TINY | {"epochs": 3, "optimizer__name": "adam", "optimizer__lr": 0.02},
        **{"schedule__name": "plateau", "schedule__patience": 0, "schedule__threshold": 0.01},
        **{"averaging__name": "ema", "averaging__decay": 0.9, "data__flip": True},
        **{"train__keep_checkpoints": 1, "train__steps_per_call": 2},
    )


@pytest.fixture(scope="module")
def uninterrupted(small: Config, tmp_path_factory: pytest.TempPathFactory, tiny: None) -> Path:
    """Folder of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    train(small, folder)
    return folder


def saved(folder: Path, number: int | None = None) -> dict[str, Any]:
    """Read a checkpoint's arrays with Orbax. The default is the last checkpoint."""
    checkpoints = folder.absolute() / "checkpoints"
    number = number or max(int(path.name) for path in checkpoints.glob("[0-9]*"))
    return ocp.PyTreeCheckpointer().restore(checkpoints / f"{number}/state")


def test_run_equals_the_run_by_hand(small: Config, uninterrupted: Path) -> None:
    hand = by_hand.RunByHand(small, DATASET, SEED)
    rates = []
    for row in rows_of(uninterrupted):
        rates.append(small.optimizer.lr * hand.scale)
        for _ in range(hand.steps_per_epoch):
            hand.update()
        loss, accuracy = hand.evaluate(hand.validation)
        expected = {
            "epoch": len(rates),
            "step": hand.step,
            "train_loss": hand.loss / hand.images,
            "train_accuracy": 100 * hand.correct / hand.images,
            "validation_loss": loss,
            "validation_accuracy": accuracy,
            "learning_rate": rates[-1],
        }
        # The balanced accuracy is tested in test_training_parts.py.
        row.pop("validation_balanced_accuracy")
        assert row == pytest.approx(expected, rel=2e-3)
        hand.end_epoch(loss)
    assert rates[-1] < rates[0]
    state = saved(uninterrupted)
    for name in ("params", "batch_stats", "averaged"):
        chex.assert_trees_all_close(state[name], getattr(hand, name), rtol=2e-3, atol=2e-4)
    result = result_of(uninterrupted)
    loss, accuracy = hand.evaluate(DATASET.test)
    assert result["test_loss"] == pytest.approx(loss, rel=2e-3)
    assert result["test_accuracy"] == pytest.approx(accuracy, abs=0.5)
    # The running statistics of BatchNorm do not count as parameters.
    assert result["parameters"] == models.count_parameters(hand.params)


@pytest.mark.parametrize(
    ("text", "stop", "error"),
    [
        ("[EPOCH 002 | IT 00002]", send(signal.SIGTERM), Stopped),
        ("[EPOCH 003 | IT 00002]", kill, KeyboardInterrupt),
    ],
)
def test_stopped_run_saves_the_same_as_an_uninterrupted_one(
    small: Config,
    uninterrupted: Path,
    tmp_path: Path,
    text: str,
    stop: Callable[[], None],
    error: type[BaseException],
) -> None:
    """After a signal, the run resumes within the epoch. After a kill, the epoch is repeated."""
    with pytest.raises(error):
        train(small, tmp_path, Recorder(text, stop))
    train(small, tmp_path)
    resumed = saved(tmp_path)
    chex.assert_trees_all_equal(resumed, saved(uninterrupted))
    assert resumed.keys() == {
        *("step", "epoch", "params", "batch_stats", "opt_state", "plateau", "metrics", "lr"),
        "averaged",
    }
    for part in ("batch_stats", "opt_state", "averaged"):
        assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(resumed[part])), part
    assert resumed["plateau"]["scale"] < 1
    assert_same_run(tmp_path, uninterrupted)


def test_best_accuracy_is_of_the_averaged_weights_of_the_best_epoch(
    small: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accuracies = iter([30.0, 60.0, 20.0])
    with monkeypatch.context() as patch:
        patch.setattr(training, "loss_and_accuracy", lambda *_: (1.0, next(accuracies)))
        result = train(small, tmp_path)
    assert (result.best_validation_epoch, result.best_validation_accuracy) == (2, 60.0)
    hand = by_hand.RunByHand(small, DATASET, SEED)
    inputs, labels = hand.normalized(DATASET.test.images), DATASET.test.labels
    best, last = saved(tmp_path, 2), saved(tmp_path)
    raw = {name: best[name] for name in ("params", "batch_stats")}
    accuracy, last_accuracy, raw_accuracy = (
        by_hand.loss_and_accuracy(hand.model, variables, inputs, labels)[1]
        for variables in (best["averaged"], last["averaged"], raw)
    )
    assert len({accuracy, last_accuracy, raw_accuracy}) == 3
    assert result.best_validation_test_accuracy == pytest.approx(accuracy)
    assert result.test_accuracy == pytest.approx(last_accuracy)
