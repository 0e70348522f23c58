"""Test that a stopped or killed run resumes to exactly the results of an uninterrupted run."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import pytest
from short_runs import (
    EPOCHS,
    STEPS,
    Recorder,
    assert_same_run,
    files,
    killed_at,
    result_of,
    rows_of,
    send,
    train,
)

from cifar_jax import errors
from cifar_jax.callbacks import base
from cifar_jax.config import Config, override
from cifar_jax.errors import Stopped, UserError
from cifar_jax.runs.checkpoints import Checkpoints
from cifar_jax.runs.folder import RunFolder
from cifar_jax.training import train as training
from cifar_jax.training.compilation import CompiledSteps
from cifar_jax.training.setup import Setup
from cifar_jax.training.step import TrainState


def kill_run(config: Config, folder: Path, text: str, **request: Any) -> None:
    """Train until a log line contains `text`. Then kill the run."""
    with pytest.raises(KeyboardInterrupt):
        train(config, folder, killed_at(text), **request)


def damage(checkpoint: Path) -> None:
    """Overwrite half of a checkpoint's largest file with zeros."""
    largest = max((p for p in checkpoint.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2 :] = b"\0" * (len(content) - len(content) // 2)
    largest.write_bytes(content)


@pytest.mark.parametrize("epoch", [1, EPOCHS])
def test_run_killed_after_an_epoch_resumes_exactly(
    config: Config, finished: Path, tmp_path: Path, epoch: int
) -> None:
    kill_run(config, tmp_path, f"epoch {epoch}/{EPOCHS}")
    assert not (tmp_path / "result.json").exists()
    recorder = Recorder()
    train(config, tmp_path, recorder)
    assert_same_run(tmp_path, finished)


def test_epoch_without_a_checkpoint_is_repeated(
    config: Config, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run is killed after writing to metrics.jsonl and before saving the checkpoint."""
    save = Checkpoints.save

    def killed(self: Checkpoints, state: Any, **about: Any) -> None:
        if int(state.step) == 2 * STEPS:
            raise KeyboardInterrupt
        save(self, state, **about)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            train(config, tmp_path)
    assert len(rows_of(tmp_path)) == 2
    with (tmp_path / "metrics.jsonl").open("a") as metrics:
        metrics.write('{"epoch": 9, "st')
    recorder = Recorder()
    train(config, tmp_path, recorder)
    assert f"resumes at step {STEPS}" in recorder.lines[0]
    assert_same_run(tmp_path, finished)


# This script runs the command line and sends a signal to itself in the second epoch.
_SIGNALLED = """
import os
from cifar_jax.callbacks.progress import Progress
from cifar_jax.cli import main
write = Progress._write
def signalled(progress, text):
    write(progress, text)
    if "[EPOCH 002 | IT 00016]" in text:
        os.kill(os.getpid(), int(os.environ["SIGNAL"]))
Progress._write = signalled
main()
"""


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL])
def test_stopped_process_resumes_exactly(
    config: Config, finished: Path, tmp_path: Path, signum: int
) -> None:
    """SIGTERM saves the run and gives exit code 143. SIGKILL saves nothing."""
    file = tmp_path / "test.py"
    file.write_text(f"from cifar_jax.config import *\nCONFIG = {config!r}\n")
    folder = tmp_path / "run"
    command = [sys.executable, "-c", _SIGNALLED, "train", str(file), "--workdir", str(folder)]
    process = subprocess.run(
        command,
        cwd=Path(training.__file__).parents[2],
        env=os.environ | {"SIGNAL": str(int(signum))},
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert process.returncode == (143 if signum == signal.SIGTERM else -9), process.stderr
    assert b"Traceback" not in process.stderr
    assert len(rows_of(folder)) == 1
    train(config, folder)
    assert_same_run(folder, finished)


def test_finished_run_is_not_changed(
    config: Config, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "build_setup", lambda *_: pytest.fail("trained again"))
    before = files(finished)
    assert train(config, finished).model_dump(mode="json") == result_of(finished)
    assert files(finished) == before


def test_fresh_starts_over(config: Config, finished: Path, tmp_path: Path) -> None:
    kill_run(config, tmp_path, "epoch 1/", fresh=True)
    recorder = Recorder()
    train(config, tmp_path, recorder, fresh=True)
    assert " starts: " in recorder.lines[0]
    assert len(json.loads((tmp_path / "env.json").read_text())) == 1
    assert_same_run(tmp_path, finished)


@pytest.mark.parametrize("method", ["add_session", "append_row", "write_result"])
def test_full_disk_is_reported_in_one_line(
    config: Config, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "runs/x")

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, method, full)
        with pytest.raises(OSError) as error:
            train(config, tmp_path)
    assert errors.explain(error.value) == "runs/x: No space left on device"
    train(config, tmp_path)
    assert_same_run(tmp_path, finished)


def test_full_device_memory_is_reported_in_one_line(
    config: Config, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = CompiledSteps.run

    def full(self: CompiledSteps, state: TrainState, epoch: Any, *others: Any) -> TrainState:
        if epoch.number:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes")
        return run(self, state, epoch, *others)

    with monkeypatch.context() as patch:
        patch.setattr(CompiledSteps, "run", full)
        with pytest.raises(jax.errors.JaxRuntimeError) as error:
            train(config, tmp_path)
    message = errors.explain(error.value)
    assert message
    assert message.startswith("out of memory")
    train(config, tmp_path)
    assert_same_run(tmp_path, finished)


@pytest.mark.parametrize(
    ("name", "content"),
    [("result.json", "{}"), ("result.json", "[]"), ("env.json", "null"), ("model.json", "{}")],
)
def test_damaged_file_is_named_and_nothing_changes(
    config: Config, finished: Path, tmp_path: Path, name: str, content: str
) -> None:
    folder = shutil.copytree(finished, tmp_path / "run")
    if name != "result.json":
        (folder / "result.json").unlink()
    (folder / name).write_text(content)
    before = files(folder)
    with pytest.raises(UserError, match=name):
        train(config, folder)
    assert files(folder) == before | {"log.txt": (folder / "log.txt").read_bytes()}


def test_lost_metrics_are_reported_and_the_run_continues(
    config: Config, finished: Path, tmp_path: Path
) -> None:
    kill_run(config, tmp_path, "[EPOCH 003 | IT 00016]")
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"epoch": 1e999}\n' + path.read_text().splitlines()[1] + "\n")
    recorder = Recorder()
    result = train(config, tmp_path, recorder)
    assert "metrics.jsonl lacks 1 of the 2 finished epochs" in recorder.lines
    assert rows_of(tmp_path) == rows_of(finished)[1:]
    assert result.params_sha256 == result_of(finished)["params_sha256"]


def test_damaged_newest_checkpoint_is_reported_and_the_previous_one_used(
    config: Config, finished: Path, tmp_path: Path
) -> None:
    kill_run(config, tmp_path, "[EPOCH 003 | IT 00016]")
    damage(tmp_path / "checkpoints/2")
    recorder = Recorder()
    train(config, tmp_path, recorder)
    assert f"resumes at step {STEPS}" in recorder.lines[0]
    assert any("is damaged" in line for line in recorder.lines)
    assert_same_run(tmp_path, finished)
    assert (tmp_path / "checkpoints/damaged-2").exists()


def test_run_whose_checkpoints_are_all_damaged_is_refused(config: Config, tmp_path: Path) -> None:
    kill_run(config, tmp_path, "[EPOCH 003 | IT 00016]")
    for number in (1, 2):
        damage(tmp_path / f"checkpoints/{number}")
    before = (tmp_path / "env.json").read_bytes()
    with pytest.raises(UserError, match="The run has no other checkpoint"):
        train(config, tmp_path)
    assert (tmp_path / "checkpoints/2").exists()
    assert (tmp_path / "env.json").read_bytes() == before  # No session was added.


def test_interval_saves_within_an_epoch(config: Config, finished: Path, tmp_path: Path) -> None:
    often = override(config, ["train.checkpoint_minutes=1e-6", "train.steps_per_call=8"])
    kill_run(often, tmp_path, "[EPOCH 003 | IT 00032]")
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        saved = checkpoints.all()
    assert [s.step for s in saved if s.end_of_epoch] == [STEPS, 2 * STEPS]
    assert 2 * STEPS < saved[-1].step < 3 * STEPS
    recorder = Recorder()
    train(config, tmp_path, recorder)
    assert f"resumes at step {saved[-1].step}" in recorder.lines[0]
    assert_same_run(tmp_path, finished)


def test_other_images_are_refused(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kill_run(config, tmp_path, "[EPOCH 003 | IT 00016]")
    build_setup = training.build_setup
    before = files(tmp_path)
    for fields, message in (
        ({"fingerprint": "f" * 64}, "the same images in another order"),
        ({"fingerprint": "f" * 64, "content": "0" * 64}, "other images"),
    ):

        def other(*arguments: Any, changed: Any = fields) -> Setup:
            setup = build_setup(*arguments)
            return setup._replace(dataset=setup.dataset._replace(**changed))

        monkeypatch.setattr(training, "build_setup", other)
        with pytest.raises(UserError, match=message):
            train(config, tmp_path)
        assert files(tmp_path) == before


def test_wall_seconds_add_up_over_the_sessions(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    began = time.perf_counter()
    later = SimpleNamespace(perf_counter=lambda: time.perf_counter() + 100)
    monkeypatch.setattr(base, "time", later)
    with pytest.raises(Stopped):
        train(config, tmp_path, Recorder("[EPOCH 001 | IT 00016]", send(signal.SIGTERM)))
    monkeypatch.undo()
    first = 100 + time.perf_counter() - began
    time.sleep(1)
    began = time.perf_counter()
    result = train(config, tmp_path)
    spent = first + time.perf_counter() - began
    assert 100 <= result.wall_seconds <= spent + 0.1
    assert len(result.sessions) == 2


def test_changed_environment_is_reported(config: Config, tmp_path: Path) -> None:
    kill_run(config, tmp_path, "[EPOCH 003 | IT 00016]")
    path = tmp_path / "env.json"
    sessions = json.loads(path.read_text())
    sessions[0]["versions"]["jax"] = "0.1"
    sessions[0]["machine"]["cores"] = 99
    path.write_text(json.dumps(sessions))
    recorder = Recorder()
    train(config, tmp_path, recorder)
    (line,) = [line for line in recorder.lines if line.startswith("the result may differ slightly")]
    assert "jax 0.1" in line
    assert "99" in line
