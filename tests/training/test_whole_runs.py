"""Whole runs of a network with BatchNorm and dropout under a plateau: beside one by hand, and all
that a run saves beside what it saves when it was stopped on the way."""

import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import by_hand
import chex
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from short_runs import Recorder, assert_same_run, kill, rows_of, send, train

from cifar_jax import models
from cifar_jax.config import Config
from cifar_jax.errors import Stopped
from cifar_jax.training import loop, setup

DATASET = by_hand.images()
STEPS = 3
# Orbax's, where it is not told on which devices to restore.
pytestmark = pytest.mark.filterwarnings("ignore:Sharding info not provided")


@pytest.fixture(scope="module", autouse=True)
def tiny() -> Iterator[None]:
    """The network and the images by hand, and no time spent on making programs fast."""
    setup = setup.setup
    jax.config.update("jax_disable_most_optimizations", True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models.MODELS, "tiny", by_hand.Tiny)
        patch.setattr(
            setup,
            "setup",
            lambda config, **options: setup(config, dataset=DATASET, **options),
        )
        yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def small(make_config: Callable[..., Config], tiny: None) -> Config:
    return make_config(
        **{"model__name": "tiny", "epochs": 3, "batch_size": 8},
        **{"optimizer__name": "adam", "optimizer__lr": 0.02, "data__flip": True},
        **{"schedule__name": "plateau", "schedule__patience": 0, "schedule__threshold": 0.5},
        **{"data__validation": 0.2, "data__train_images": "none", "train__log_every": 1},
        **{"train__keep_checkpoints": 1, "train__steps_per_call": 2},
    )


@pytest.fixture(scope="module")
def whole(small: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the run, never interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    train(small, folder)
    return folder


def saved(folder: Path, step: int = 3 * STEPS) -> dict[str, Any]:
    """All that the checkpoint of that step holds, by orbax alone."""
    return ocp.PyTreeCheckpointer().restore(folder.absolute() / f"checkpoints/{step}/default")


def test_a_run_is_the_one_by_hand(small: Config, whole: Path) -> None:
    """What it writes down of each epoch, and the weights that it ends with."""
    hand = by_hand.Hand(small, DATASET, seed=0)
    rates = []
    for row in rows_of(whole):
        rates.append(small.optimizer.lr * hand.plateau.scale)
        for _ in range(STEPS):
            hand.update()
        loss, accuracy = hand.measured(hand.validation)
        expected = {
            "epoch": len(rates),
            "step": hand.step,
            "train_loss": hand.loss / hand.images,
            "train_accuracy": 100 * hand.correct / hand.images,
            "validation_loss": loss,
            "validation_accuracy": accuracy,
            "learning_rate": rates[-1],
        }
        assert row == pytest.approx(expected, rel=2e-3)
        hand.end_epoch(loss)
    assert rates[-1] < rates[0]
    state = saved(whole)
    chex.assert_trees_all_close(state["params"], hand.params, rtol=2e-3, atol=2e-4)
    chex.assert_trees_all_close(state["batch_stats"], hand.batch_stats, rtol=2e-3, atol=2e-4)
    result = json.loads((whole / "result.json").read_text())
    loss, accuracy = hand.measured(DATASET.test)
    assert result["test_loss"] == pytest.approx(loss, rel=2e-3)
    assert result["test_accuracy"] == pytest.approx(accuracy)


STOPS: dict[str, tuple[str, Callable[[], None], type[BaseException]]] = {
    "in an epoch": ("[EPOCH 002 | IT 00002]", send(signal.SIGTERM), Stopped),
    "after an epoch": ("epoch 2/3", kill, KeyboardInterrupt),
}


@pytest.mark.parametrize(("text", "stop", "error"), STOPS.values(), ids=STOPS)
def test_a_stopped_run_saves_what_the_whole_one_does(
    small: Config,
    whole: Path,
    tmp_path: Path,
    text: str,
    stop: Callable[[], None],
    error: type[BaseException],
) -> None:
    """Weights, statistics, moments, plateau, metrics: each had moved, and is bit for bit alike."""
    with pytest.raises(error):
        train(small, tmp_path, Recorder(text, stop))
    train(small, tmp_path)
    ours, theirs = saved(tmp_path), saved(whole)
    chex.assert_trees_all_equal(ours, theirs)
    assert ours.keys() == {
        *("step", "params", "batch_stats", "opt_state", "plateau", "metrics", "lr", "averaged"),
    }
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(ours["batch_stats"]))
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(ours["opt_state"]))
    assert ours["plateau"]["scale"] < 1
    assert_same_run(tmp_path, whole)


def test_the_best_accuracy_is_that_of_the_best_weights(
    small: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the second epoch, which validation is made to prefer."""
    accuracies = iter([30.0, 60.0, 20.0])
    with monkeypatch.context() as patch:
        patch.setattr(loop, "measure", lambda *_: {"loss": 1.0, "accuracy": next(accuracies)})
        result = train(small, tmp_path)
    assert (result["best_validation_epoch"], result["best_validation_accuracy"]) == (2, 60.0)
    best, last = saved(tmp_path, 2 * STEPS), saved(tmp_path)
    hand = by_hand.Hand(small, DATASET, seed=0)
    inputs = hand.normalized(DATASET.test.images)
    found = []
    for state in (best, last):
        variables = {name: state[name] for name in ("params", "batch_stats")}
        found.append(by_hand.measured(hand.model, variables, inputs, DATASET.test.labels)[1])
    assert found[0] != found[1]
    measured = result["best_validation_test_accuracy"], result["test_accuracy"]
    assert measured == pytest.approx(tuple(found))
    assert result["test_accuracy"] == pytest.approx(found[1])
