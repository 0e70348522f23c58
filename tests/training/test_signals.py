"""Test that a run saves and stops after a signal at any time, and resumes exactly."""

import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
from short_runs import (
    STEPS,
    Recorder,
    assert_same_run,
    result_of,
    rows_of,
    send,
    train,
)

import cifar_jax
from cifar_jax.callbacks.signals import StopOnSignal
from cifar_jax.config import Config
from cifar_jax.errors import Stopped
from cifar_jax.runs.checkpoints import Checkpoints
from cifar_jax.runs.folder import RunFolder
from cifar_jax.training import train as training
from cifar_jax.training.compilation import CompiledSteps


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_run_stopped_within_an_epoch_resumes_exactly(
    config: Config, finished: Path, tmp_path: Path, signum: int
) -> None:
    handler = signal.getsignal(signum)
    for text in ("[EPOCH 001 | IT 00016]", "[EPOCH 002 | IT 00032]"):
        with pytest.raises(Stopped, match="saved and stopped") as stopped:
            train(config, tmp_path, Recorder(text, send(signum)))
        assert stopped.value.signum == signum
        assert signal.getsignal(signum) is handler
    assert len(rows_of(tmp_path)) == 1
    recorder = Recorder()
    train(config, tmp_path, recorder)
    assert f"resumes at step {STEPS + 32}" in recorder.lines[0]
    assert_same_run(tmp_path, finished)
    assert len(result_of(tmp_path)["sessions"]) == 3


def test_signal_during_validation_saves_the_steps(
    config: Config, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compile_evaluation = training.compile_evaluation

    def interrupted(*arguments: Any, after_batch: Any) -> Any:
        def signal_after_batch() -> None:
            send(signal.SIGTERM)()
            after_batch()

        return compile_evaluation(*arguments, after_batch=signal_after_batch)

    with monkeypatch.context() as patch:
        patch.setattr(training, "compile_evaluation", interrupted)
        with pytest.raises(Stopped, match="saved and stopped by SIGTERM"):
            train(config, tmp_path)
    assert rows_of(tmp_path) == []
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        (saved,) = checkpoints.all()
    assert (saved.step, saved.epoch, saved.end_of_epoch) == (STEPS, 0, False)
    train(config, tmp_path)
    assert_same_run(tmp_path, finished)
    speeds = [row.images_per_second for row in RunFolder(tmp_path).rows()]
    assert min(speeds) > 0


@pytest.mark.parametrize("where", ["build_setup", "CompiledSteps", "write_result"])
def test_signal_with_nothing_to_save_stops_at_once(
    config: Config,
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
) -> None:
    function = getattr(training, where)

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        send(signal.SIGTERM)()
        return function(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(training, where, interrupted)
        with pytest.raises(Stopped, match=r"^stopped by SIGTERM"):
            train(config, tmp_path)
    assert not (tmp_path / "result.json").exists()
    train(config, tmp_path)
    assert_same_run(tmp_path, finished)


def test_save_of_a_signal_replaces_no_end_of_epoch(config: Config, tmp_path: Path) -> None:
    for text in ("epoch 2/", "[EPOCH 003 | IT 00016]"):
        with pytest.raises(Stopped):
            train(config, tmp_path, Recorder(text, send(signal.SIGTERM)))
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        saved = [(s.step, s.end_of_epoch) for s in checkpoints.all()]
    assert saved == [(STEPS, True), (2 * STEPS, True), (2 * STEPS + 16, False)]


def test_interrupt_in_python_saves_and_raises_keyboard_interrupt(
    config: Config, finished: Path, tmp_path: Path
) -> None:
    class Interrupt(cifar_jax.Callback):
        def on_call(self, state: Any, metrics: Any) -> None:
            if metrics.step > STEPS:
                os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt, match="saved and stopped"):
        cifar_jax.train(config, tmp_path, callbacks=[Interrupt()])
    assert len(rows_of(tmp_path)) == 1
    result = cifar_jax.train(config, tmp_path)
    assert result.params_sha256 == result_of(finished)["params_sha256"]


def test_run_killed_after_its_last_epoch_only_computes_the_result(
    config: Config, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*arguments: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(training, "write_result", killed)
        with pytest.raises(KeyboardInterrupt):
            train(config, tmp_path)
    monkeypatch.setattr(CompiledSteps, "run", killed)
    train(config, tmp_path)
    assert_same_run(tmp_path, finished)


def test_second_signal_has_its_usual_effect(capfd: pytest.CaptureFixture[str]) -> None:
    with StopOnSignal() as signals:
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Stopped):
            signals.check()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert "repeat the signal to stop at once" in capfd.readouterr().err


def test_ignored_signal_stays_ignored() -> None:
    """`nohup` starts a program with SIGHUP ignored."""
    handler = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopOnSignal() as signals:
            signal.raise_signal(signal.SIGHUP)
            signals.check()
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, handler)


def test_thread_other_than_the_main_one_handles_no_signals() -> None:
    handlers = []

    def run() -> None:
        with StopOnSignal():
            handlers.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert handlers == [signal.getsignal(signal.SIGTERM)]
