"""What a signal that stops a run costs: no whole epoch, and nothing of the one it came in."""

import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from short_runs import Spy, rows_of, send, train
from tiny import TINY

from cifar_jax.config import Config
from cifar_jax.errors import Stopped
from cifar_jax.training import compilation, loop, plan

Make = Callable[..., Config]
pytestmark = pytest.mark.usefixtures("tiny")


@pytest.mark.parametrize(
    ("step", "images", "over"),
    [(0, 0, 0), (1, 8, 0), (4, 32, 0), (4, 0, 1), (5, 8, 1), (8, 32, 1), (8, 0, 2), (9, 8, 2)],
)
def test_an_epoch_is_over_once_it_was_validated(
    make_config: Make, step: int, images: int, over: int
) -> None:
    """Not with its last step: a signal may have come between the two."""
    four_steps_each = plan.make(make_config(**TINY), 32, 32)
    state: Any = SimpleNamespace(step=step, metrics=SimpleNamespace(images=images))
    assert loop.epochs_over(four_steps_each, state) == over


def test_what_a_signal_saves_takes_the_place_of_no_whole_epoch(
    make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes after an epoch, then within one, and in the validation of that."""
    accuracies = iter([50.0, 40.0])
    monkeypatch.setattr(loop, "measure", lambda *_: {"loss": 1.0, "accuracy": next(accuracies)})
    config = make_config(**TINY | {"model__name": "dense"}, train__keep_checkpoints=1)

    def saved(display: Spy) -> set[str]:
        with pytest.raises(Stopped, match=r"^saved and stopped by SIGTERM"):
            train(config, tmp_path, display)
        return {path.name for path in (tmp_path / "checkpoints").iterdir()}

    best, last = "4", "8"
    assert saved(Spy("epoch 2/", send(signal.SIGTERM))) == {best, last}
    within = Spy("[EPOCH 003 | IT 00002]", send(signal.SIGTERM))
    assert saved(within) == {best, last, "10"}
    compile_evaluation = compilation.compile_evaluation

    def interrupted(*args: Any) -> Callable[..., Any]:
        evaluate = compile_evaluation(*args)

        def logits(variables: Any) -> Any:
            send(signal.SIGTERM)()
            return evaluate(variables)

        return logits

    monkeypatch.setattr(compilation, "compile_evaluation", interrupted)
    assert saved(Spy()) == {best, last, "12"}
    assert len(rows_of(tmp_path)) == 2
