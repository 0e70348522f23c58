"""What a run goes back to where its loss is no longer finite, and at which rate it goes on."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import pytest
from short_runs import Spy, loss_lines, rows_of, train
from tiny import DATASET, TINY, Dense

from cifar_jax import models
from cifar_jax.config import Config, override
from cifar_jax.training import loop

pytestmark = pytest.mark.usefixtures("tiny")


def test_each_going_back_halves_the_rate_once(
    make_config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First to the weights that the run was given, since none are saved yet, and then to a
    checkpoint that has half the rate already."""
    weights = models.init_variables(Dense(len(DATASET.classes)), jax.random.key(1))
    config = make_config(
        **TINY | {"model__name": "dense", "epochs": 2},
        **{"train__init_from": "given", "train__on_nan": "restore"},
    )
    sums, due = loop.loss_sums, [1, 5]

    def diverging(state: Any) -> tuple[float, int]:
        if due and int(state.step) >= due[0]:
            due.pop(0)
            return float("nan"), 1
        return sums(state)

    display = Spy()
    with monkeypatch.context() as patch:
        patch.setattr(loop, "loss_sums", diverging)
        result = train(config, tmp_path / "run", display, initial=lambda: weights)
    back = [line.partition(": back to ")[2] for line in display.lines if ": back to " in line]
    assert back == [
        "step 0 with half the learning rate, 0.025",
        "step 4 with half the learning rate, 0.0125",
    ]
    assert result["halvings"] == 2
    halved = override(config, ["optimizer.lr=0.025"])
    train(halved, tmp_path / "halved", initial=lambda: weights)
    first, second = rows_of(tmp_path / "run")
    # Each epoch tells how often, so that no record is made of it, finished or not.
    assert (first.pop("halvings"), second["halvings"]) == (1, 2)
    assert first == pytest.approx(rows_of(tmp_path / "halved")[0], rel=1e-5)
    assert second["learning_rate"] == pytest.approx(0.0125)
    lines, expected = (
        [line for line in loss_lines(tmp_path / name) if line.startswith("[EPOCH 001")]
        for name in ("run", "halved")
    )
    assert lines == expected
