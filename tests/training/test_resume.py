"""No interruption shows in a run: it goes on where it stopped, bit for bit."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import pytest
from short_runs import (
    EPOCHS,
    STEPS,
    Spy,
    assert_same_run,
    change_meta,
    files,
    raise_it,
    rows_of,
    send,
    train,
)

from cifar_jax import errors
from cifar_jax.config import Config, override
from cifar_jax.errors import Stopped, UserError
from cifar_jax.inference.load import weights
from cifar_jax.runs.checkpoints import Checkpoints
from cifar_jax.runs.folder import Workdir
from cifar_jax.training import compilation, fit, setup
from cifar_jax.training.plan import Epoch

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


@pytest.mark.parametrize("epoch", [1, 2])
def test_an_epoch_that_was_written_down_but_not_saved_is_repeated_once(
    config: Config, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, epoch: int
) -> None:
    """Checkpoints are written in the background, so a kill can come between the two."""
    save = Checkpoints.save

    def killed(self: Checkpoints, state: Any, *rest: Any, **named: Any) -> None:
        if int(state.step) == epoch * STEPS:
            raise KeyboardInterrupt
        save(self, state, *rest, **named)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            train(config, tmp_path / "run")
    assert len(rows_of(tmp_path / "run")) == epoch
    with (tmp_path / "run/metrics.jsonl").open("a") as metrics:
        metrics.write('{"epoch": 9, "st')  # of which no checkpoint knows
    display = Spy()
    train(config, tmp_path / "run", display)
    assert not [line for line in display.lines if "has lost" in line]
    assert_same_run(tmp_path / "run", finished)


def test_what_a_run_begins_with_is_needed_until_its_first_checkpoint(
    config: Config, finished: Path, tmp_path: Path
) -> None:
    config = override(config, [f"train.init_from={finished}"])
    source, folder = weights(finished), tmp_path / "run"
    other = jax.tree.map(lambda x: x + 1, source)

    def gone() -> Any:
        raise UserError("no run or export")

    train(config, tmp_path / "whole", initial=lambda: source)
    with pytest.raises(UserError, match="no run or export"):
        train(config, folder, initial=gone)
    assert not folder.exists()
    early, later = (
        Spy(text, raise_it(KeyboardInterrupt())) for text in ("[EPOCH 001 | IT 00016]", "epoch 1/")
    )
    with pytest.raises(KeyboardInterrupt):
        train(config, folder, early, initial=lambda: source)
    with pytest.raises(UserError, match=f"{finished} has other weights than {folder} was begun"):
        train(config, folder, initial=lambda: other)
    with pytest.raises(KeyboardInterrupt):
        train(config, folder, later, initial=lambda: source)
    train(config, folder, initial=gone)
    assert_same_run(folder, tmp_path / "whole")
    train(config, folder, initial=gone)  # it is found finished


# The command line, which a signal reaches amid its second epoch, however fast the machine is.
_SIGNALLED = """
import os
from cifar_jax.cli import main
from cifar_jax.training.display import Display
line = Display.line
def signalled(display, text, **options):
    line(display, text, **options)
    if "[EPOCH 002 | IT 00016]" in text:
        os.kill(os.getpid(), int(os.environ["SIGNAL"]))
Display.line = signalled
main()
"""


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL])
def test_a_process_that_is_stopped_goes_on_exactly(
    config: Config, finished: Path, tmp_path: Path, signum: int
) -> None:
    """From the command line: SIGTERM saves and exits with 143, SIGKILL falls back to the last
    whole epoch."""
    file = tmp_path / "test.py"
    file.write_text(f"from cifar_jax.config import *\nCONFIG = {config!r}\n")
    folder = tmp_path / "run"
    command = [sys.executable, "-c", _SIGNALLED, "train", str(file), "--workdir", str(folder)]
    ended = subprocess.run(
        command,
        cwd=Path(fit.__file__).parents[2],
        env=os.environ | {"SIGNAL": str(int(signum))},
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == (143 if signum == signal.SIGTERM else -9), ended.stderr
    assert b"Traceback" not in ended.stderr
    assert len(rows_of(folder)) == 1
    train(config, folder)
    assert_same_run(folder, finished)


def test_a_finished_run_prints_its_result_and_is_left_alone(
    config: Config, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(setup, "workload", raise_it(AssertionError("trained again")))
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


@pytest.mark.parametrize("write", ["record_start", "append_epoch", "write_result"])
def test_a_full_disk_is_told_in_one_line_and_the_run_goes_on_exactly(
    config: Config, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: str
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Workdir, write, full)
        with pytest.raises(OSError) as refused:
            train(config, tmp_path / "run")
    told = errors.explain(refused.value)
    assert told is not None
    assert "No space left on device" in told
    assert "\n" not in told
    train(config, tmp_path / "run")
    assert_same_run(tmp_path / "run", finished)


def test_too_little_memory_of_the_device_is_told_and_the_run_goes_on_exactly(
    config: Config, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compile_training = compilation.compile_training

    def compiled(*arguments: Any) -> compilation.CompiledSteps:
        training = compile_training(*arguments)

        def begin(epoch: Epoch, *others: Any) -> Any:
            if not epoch.number:
                return training.begin(epoch, *others)
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes")

        return training._replace(begin=begin)

    with monkeypatch.context() as patch:
        patch.setattr(compilation, "compile_training", compiled)
        with pytest.raises(jax.errors.JaxRuntimeError) as refused:
            train(config, tmp_path)
    told = errors.explain(refused.value)
    assert told is not None
    assert told.startswith("out of memory: ")
    assert "\n" not in told
    display = Spy()
    train(config, tmp_path, display)
    assert f"goes on from step {STEPS}" in display.lines[0]
    assert_same_run(tmp_path, finished)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("result.json", "{}", r"result\.json is incomplete: it has no 'experiment'"),
        ("result.json", "[]", r"result\.json is not that of a run"),
        ("env.json", "null", r"env\.json is not that of a run: it holds no list"),
        ("env.json", "[3]", r"env\.json is not that of a run: it holds no object"),
        ("model.json", "{}", r"model\.json is incomplete: it has no 'data'"),
        ("model.json", '{"data": {"name": "digits"}}', r"model\.json is incomplete: .*'sha256'"),
    ],
)
def test_a_damaged_file_is_named_and_nothing_is_changed(
    config: Config, finished: Path, tmp_path: Path, name: str, content: str, told: str
) -> None:
    folder = shutil.copytree(finished, tmp_path / "run")
    if name != "result.json":
        (folder / "result.json").unlink()
    (folder / name).write_text(content)
    before = files(folder)
    with pytest.raises(UserError, match=told):
        train(config, folder)
    assert files(folder) == before


@pytest.mark.parametrize(
    "row",
    [
        '{"epoch": 1}',
        '{"epoch": "1", "step": 40}',
        '{"epoch": 1e999}',
        '{"epoch": 1, "step": 40, "loss": 2.0}',
    ],
)
def test_a_row_that_makes_no_sense_is_told_and_survived(
    config: Config, finished: Path, tmp_path: Path, row: str
) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path, Spy("epoch 2/", raise_it(KeyboardInterrupt())))
    path = tmp_path / "metrics.jsonl"
    path.write_text(f"{row}\n{path.read_text().splitlines()[1]}\n")
    display = Spy()
    result = train(config, tmp_path, display)
    assert "metrics.jsonl has lost 1 of 2 epochs" in display.lines
    assert [row["epoch"] for row in rows_of(tmp_path)] == [2, 3]
    assert (
        result["params_sha256"]
        == json.loads((finished / "result.json").read_text())["params_sha256"]
    )


@pytest.mark.parametrize("damaged", [1, 2])
def test_a_run_goes_on_exactly_from_what_is_not_damaged(
    config: Config, finished: Path, tmp_path: Path, damaged: int
) -> None:
    """With both checkpoints damaged nothing is touched."""
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path, Spy("epoch 2/", raise_it(KeyboardInterrupt())))
    for step in (80, 40)[:damaged]:
        path = tmp_path / f"checkpoints/{step}/default"
        (path / "manifest.ocdbt").write_bytes(b"")
    display = Spy()
    if damaged == 2:
        with pytest.raises(UserError, match=r"no checkpoint in .* can be read"):
            train(config, tmp_path, display)
        assert (tmp_path / "checkpoints/80").exists()
        return
    train(config, tmp_path, display)
    assert "goes on from step 40" in display.lines[0]
    assert "the checkpoint of step 80 is damaged" in display.lines[1]
    assert_same_run(tmp_path, finished)
    assert (tmp_path / "checkpoints/damaged-80").exists()


def test_a_damaged_best_checkpoint_costs_its_figures_and_nothing_else(
    config: Config, finished: Path, tmp_path: Path
) -> None:
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run/result.json").unlink()
    best = 2 * STEPS
    change_meta(tmp_path / f"run/checkpoints/{best}", validation_accuracy=99.9)
    shutil.rmtree(tmp_path / f"run/checkpoints/{best}/default")
    display = Spy()
    result = train(config, tmp_path / "run", display)
    assert any(f"the checkpoint of step {best} is damaged" in line for line in display.lines)
    assert result["best_validation_epoch"] != best // STEPS
    assert (
        result["params_sha256"]
        == json.loads((finished / "result.json").read_text())["params_sha256"]
    )


def test_saved_within_an_epoch_by_time(
    config: Config, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill loses no more than the minutes between two saves, and no whole epoch goes for it."""
    often = override(config, ["train.checkpoint_minutes=1e-6", "train.steps_per_call=8"])
    with pytest.raises(KeyboardInterrupt):
        train(often, tmp_path, Spy("[EPOCH 003 | IT 00032]", raise_it(KeyboardInterrupt())))
    saved = {int(path.name) for path in (tmp_path / "checkpoints").iterdir()}
    assert {STEPS, 2 * STEPS} < saved
    assert 2 * STEPS < max(saved) < 3 * STEPS
    display = Spy()
    train(config, tmp_path, display)
    assert f"goes on from step {max(saved)}" in display.lines[0]
    assert_same_run(tmp_path, finished)


def test_a_run_is_held_to_its_images_and_tells_of_lost_epochs(
    config: Config, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path, Spy("epoch 2/", raise_it(KeyboardInterrupt())))
    workload = setup.workload
    before = files(tmp_path)
    for fields, told in (
        ({"fingerprint": "0" * 64}, "in another order"),
        ({"fingerprint": "f" * 64}, "in another order"),
        ({"fingerprint": "f" * 64, "content": "0" * 64}, "others here"),
        ({"fingerprint": "f" * 64, "content": "f" * 64}, "others here"),
    ):

        def other(config: Config, *, changed: Any = fields, **options: Any) -> Any:
            made = workload(config, **options)
            return made._replace(dataset=made.dataset._replace(**changed))

        with monkeypatch.context() as patch:
            patch.setattr(setup, "workload", other)
            with pytest.raises(UserError, match=f"digits that are {told}"):
                train(config, tmp_path)
        assert files(tmp_path) == before
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text("".join(metrics.read_text().splitlines(keepends=True)[1:]))
    display = Spy()
    train(config, tmp_path, display)
    assert "metrics.jsonl has lost 1 of 2 epochs" in display.lines
    assert rows_of(tmp_path) == rows_of(finished)[1:]


def test_every_second_counts_once(config: Config, tmp_path: Path) -> None:
    """Also those of an epoch in which a signal stopped the run."""
    began = time.perf_counter()
    with pytest.raises(Stopped):
        train(config, tmp_path, Spy("[EPOCH 001 | IT 00016]", send(signal.SIGTERM)))
    first = time.perf_counter() - began
    time.sleep(1)  # between two starts: no time of the run
    began = time.perf_counter()
    result = train(config, tmp_path)
    spent = first + time.perf_counter() - began
    assert spent - 1.5 < result["wall_seconds"] <= spent + 0.1
    assert len(result["starts"]) == 2
