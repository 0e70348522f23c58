"""No interruption shows in a run: it goes on where it stopped, bit for bit."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from short_runs import (
    EPOCHS,
    STEPS,
    Spy,
    assert_same_run,
    files,
    raise_it,
    rows_of,
    rows_of_or_none,
    send,
    train,
)

from cifar_jax.config import Config
from cifar_jax.errors import UserError
from cifar_jax.inference.evaluate import evaluate
from cifar_jax.runs.checkpoints import Checkpoints
from cifar_jax.training import fit, programs
from cifar_jax.training.signals import Stopped

Make = Callable[..., Config]


@pytest.mark.parametrize("after", [1, EPOCHS])
def test_a_run_killed_after_an_epoch_goes_on_exactly(
    config: Config, finished: Path, tmp_path: Path, after: int
) -> None:
    """The last epoch too: then only the result is missing."""
    killed = Spy(f"epoch {after}/{EPOCHS}", raise_it(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "run", killed)
    assert not (tmp_path / "run" / "result.json").exists()
    display = Spy()
    train(config, tmp_path / "run", display)
    assert f"goes on from step {after * STEPS}" in display.lines[0]
    assert sum(line.startswith("epoch ") for line in display.lines) == EPOCHS - after
    assert_same_run(tmp_path / "run", finished)


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


@pytest.mark.parametrize("epoch", [1, 2])
def test_an_epoch_that_was_written_down_but_not_saved_is_repeated_once(
    config: Config, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, epoch: int
) -> None:
    """Checkpoints are written in the background, so a kill can come between the two."""
    save = Checkpoints.save

    def killed(self: Checkpoints, state: Any, *rest: Any) -> None:
        if int(state.step) == epoch * STEPS:
            raise KeyboardInterrupt
        save(self, state, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            train(config, tmp_path / "run")
    assert len(rows_of(tmp_path / "run")) == epoch
    train(config, tmp_path / "run")
    assert_same_run(tmp_path / "run", finished)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL])
def test_a_process_that_is_stopped_goes_on_exactly(
    config: Config, finished: Path, tmp_path: Path, signum: int
) -> None:
    """From the command line: SIGTERM saves and exits with 143, SIGKILL falls back to the last
    whole epoch."""
    file = tmp_path / "test.py"
    file.write_text(f"from cifar_jax.config import *\nCONFIG = {config!r}\n")
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "cifar_jax", "train", str(file), "--workdir", str(folder)]
    process = subprocess.Popen(
        command, cwd=Path(fit.__file__).parents[2], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 120
    log = folder / "log.txt"
    while not (log.exists() and "[EPOCH 002 | IT 00016]" in log.read_text()):
        assert process.poll() is None, process.stderr and process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signum)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == (143 if signum == signal.SIGTERM else -9)
    assert b"Traceback" not in errors
    assert len(rows_of(folder)) == 1
    train(config, folder)
    assert_same_run(folder, finished)


def test_the_second_signal_stops_at_once(config: Config, tmp_path: Path) -> None:
    def twice() -> None:
        send(signal.SIGINT)()
        send(signal.SIGINT)()

    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "run", Spy("[EPOCH 001", twice))


def test_an_ignored_interrupt_stays_ignored(make_config: Make, tmp_path: Path) -> None:
    """What runs in the background of a shell is not meant by its Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        interrupt = Spy("epoch 1", lambda: os.kill(os.getpid(), signal.SIGINT))
        assert train(make_config(), tmp_path / "run", interrupt)["epochs"] == 2
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_finished_run_prints_its_result_and_is_left_alone(
    config: Config, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(programs, "setup", raise_it(AssertionError("trained again")))
    before = files(finished)
    assert train(config, finished) == json.loads((finished / "result.json").read_text())
    assert files(finished) == before


def test_fresh_trains_anew(config: Config, finished: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path, Spy("epoch 1/", raise_it(KeyboardInterrupt())), fresh=True)
    display = Spy()
    train(config, tmp_path, display, fresh=True)
    assert " begins: " in display.lines[0]
    assert len(json.loads((tmp_path / "env.json").read_text())) == 1
    assert_same_run(tmp_path, finished)


def test_the_last_good_checkpoint_outlives_a_loss_that_diverges(
    config: Config, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    means = programs.means

    def diverged(metrics: Any) -> dict[str, float]:
        found = means(metrics)
        return found | {"loss": float("nan")} if len(rows_of_or_none(tmp_path)) == 1 else found

    with monkeypatch.context() as patch:
        patch.setattr(programs, "means", diverged)
        with pytest.raises(UserError, match=r"after epoch 2: .*the checkpoint of epoch 1 is kept"):
            train(config, tmp_path)
    assert len(rows_of(tmp_path)) == 1
    assert evaluate(tmp_path)["epoch"] == 1
    train(config, tmp_path)
    assert_same_run(tmp_path, finished)
