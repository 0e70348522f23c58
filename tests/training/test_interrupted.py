"""A signal at any moment of a run: it is heard, and the run goes on from there, bit for bit."""

import json
import signal
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from short_runs import (
    EPOCHS,
    STEPS,
    Spy,
    assert_same_run,
    raise_it,
    rows_of,
    rows_of_or_none,
    send,
    train,
)

from cifar_jax.config import Config
from cifar_jax.errors import Stopped
from cifar_jax.training import compilation, fit, setup


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_run_stopped_within_an_epoch_goes_on_exactly(
    config: Config, finished: Path, tmp_path: Path, signum: int
) -> None:
    """In the first epoch, before there is a checkpoint, and again in the second."""
    handler = signal.getsignal(signum)
    for text in ("[EPOCH 001 | IT 00016]", "[EPOCH 002 | IT 00032]"):
        with pytest.raises(Stopped) as stopped:
            train(config, tmp_path / "run", Spy(text, send(signum)))
        assert stopped.value.signum == signum
        assert signal.getsignal(signum) is handler
    assert len(rows_of(tmp_path / "run")) == 1
    display = Spy()
    train(config, tmp_path / "run", display)
    assert f"goes on from step {STEPS + 32}" in display.lines[0]
    assert_same_run(tmp_path / "run", finished)
    assert len(json.loads((tmp_path / "run" / "env.json").read_text())) == 3


def test_a_signal_in_validation_is_heard(
    config: Config, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between its batches: the epoch's steps are saved, and validation is made again."""
    for epoch in (1, EPOCHS):
        compiled = compilation.compile_evaluation

        def interrupted(workload: Any, state: Any, images: Any, after_batch: Any = bool) -> Any:
            calls = []

            def after() -> None:
                calls.append(1)
                if len(calls) == (1 if epoch == 1 else 2):  # noqa: B023
                    send(signal.SIGTERM)()
                after_batch()

            return compiled(workload, state, images, after)  # noqa: B023

        with monkeypatch.context() as patch:
            patch.setattr(compilation, "compile_evaluation", interrupted)
            with pytest.raises(Stopped, match="saved and stopped by SIGTERM"):
                train(config, tmp_path)
        assert len(rows_of_or_none(tmp_path)) == epoch - 1
        if epoch == 1:
            with pytest.raises(KeyboardInterrupt):
                train(config, tmp_path, Spy("epoch 1/", raise_it(KeyboardInterrupt())))
    display = Spy()
    train(config, tmp_path, display)
    assert_same_run(tmp_path, finished)


@pytest.mark.parametrize(
    ("module", "where"),
    [(setup, "workload"), (compilation, "compile_training"), (fit, "measure_result")],
)
def test_a_signal_where_there_is_nothing_to_save_ends_the_run_at_once(
    config: Config,
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    module: ModuleType,
    where: str,
) -> None:
    """While data is read, while programs are compiled, and in the evaluation on the test images."""
    function = getattr(module, where)

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        send(signal.SIGTERM)()
        return function(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(module, where, interrupted)
        with pytest.raises(Stopped, match=r"^stopped by SIGTERM"):
            train(config, tmp_path)
    assert not (tmp_path / "result.json").exists()
    train(config, tmp_path)
    assert_same_run(tmp_path, finished)
