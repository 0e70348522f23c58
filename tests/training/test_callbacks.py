"""Test the calls of callbacks, and the output of the built-in callbacks."""

import importlib.util
import io
import json
import multiprocessing
import signal
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from rich.console import Console
from short_runs import Recorder, rows_of, send, train
from tensorboardX.proto import event_pb2
from tiny import TINY

import cifar_jax
from cifar_jax.callbacks.progress import Progress
from cifar_jax.config import Config, override
from cifar_jax.errors import Stopped
from cifar_jax.runs.checkpoints import Checkpoints

Make = Callable[..., Config]
pytestmark = pytest.mark.usefixtures("tiny")

TAGS = {
    **{"train_loss": "train/loss", "train_accuracy": "train/accuracy"},
    **{"validation_loss": "validation/loss", "validation_accuracy": "validation/accuracy"},
    "learning_rate": "learning_rate",
}


@pytest.fixture(scope="module")
def small(make_config: Make) -> Config:
    settings = {"epochs": 3, "train__steps_per_call": 2, "train__log_every": 100}
    return make_config(**TINY | {"model__name": "dense"} | settings)


class Calls(cifar_jax.Callback):
    """Callback that records its calls, and the number of metrics rows at the end of each epoch."""

    def __init__(self) -> None:
        self.events: list[Any] = []

    def on_start(self, context: Any, state: Any) -> None:
        self.folder = context.folder
        self.events.append(("start", int(state.step)))

    def on_call(self, state: Any, metrics: Any) -> None:
        assert int(state.step) == metrics.step
        assert metrics.images == (metrics.step % 4 or 4) * 8
        assert metrics.loss > 0
        self.events.append(metrics.step)

    def on_epoch_end(self, state: Any, metrics: Any) -> None:
        with Checkpoints(self.folder.checkpoints) as checkpoints:
            assert len(checkpoints.all()) < metrics.epoch
        self.events.append(("epoch", metrics.epoch, len(self.folder.rows())))

    def on_end(self, result: Any) -> None:
        self.events.append(("end", result.steps))

    def close(self) -> None:
        self.events.append("close")


def test_callbacks_are_called_in_order_and_epochs_before_their_checkpoint(
    small: Config, tmp_path: Path
) -> None:
    calls = Calls()
    train(small, tmp_path, callbacks=[calls])
    assert calls.events == [
        *(("start", 0), 2, 4, ("epoch", 1, 1)),
        *(6, 8, ("epoch", 2, 2)),
        *(10, 12, ("epoch", 3, 3)),
        *(("end", 12), "close"),
    ]


def test_callback_that_fails_ends_the_run_and_all_are_closed(small: Config, tmp_path: Path) -> None:
    class Failing(cifar_jax.Callback):
        def on_epoch_end(self, state: Any, metrics: Any) -> None:
            raise ValueError("no connection")

    calls = Calls()
    with pytest.raises(ValueError, match="no connection"):
        train(small, tmp_path, callbacks=[Failing(), calls])
    assert calls.events[-1] == "close"
    assert len(rows_of(tmp_path)) == 1
    train(small, tmp_path)
    assert len(rows_of(tmp_path)) == 3


def test_callback_that_did_not_start_is_not_closed(small: Config, tmp_path: Path) -> None:
    class Failing(cifar_jax.Callback):
        def on_start(self, context: Any, state: Any) -> None:
            raise ValueError("no connection")

    calls = Calls()
    with pytest.raises(ValueError, match="no connection"):
        train(small, tmp_path, callbacks=[Failing(), calls])
    assert not calls.events


def test_example_callback_logs_a_run_that_was_stopped(small: Config, tmp_path: Path) -> None:
    path = Path(__file__).parents[2] / "docs/examples/json_logger.py"
    spec = importlib.util.spec_from_file_location("json_logger", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    log = tmp_path / "log.json"
    stop = Recorder("epoch 2/", send(signal.SIGTERM))
    with pytest.raises(Stopped):
        train(small, tmp_path / "run", stop, [module.JsonLogger(log)])
    result = train(small, tmp_path / "run", callbacks=[module.JsonLogger(log)])
    content = json.loads(log.read_text())
    assert [row["epoch"] for row in content["epochs"]] == [1, 2, 3]
    assert content["test_accuracy"] == result.test_accuracy
    assert content["settings"]["model.name"] == "dense"


def test_tensorboard_shows_each_epoch_once(small: Config, tmp_path: Path, monkeypatch) -> None:
    """The files are in order although the clock goes back before the second session.

    TensorBoard reads event files in the order of their names. Writing needs no shared memory.
    """
    monkeypatch.setattr(multiprocessing, "Queue", None)
    for recorder, now in ((Recorder("epoch 2/", send(signal.SIGTERM)), 2e9), (Recorder(), 1e9)):
        monkeypatch.setattr("time.time", lambda now=now: now)
        with suppress(Stopped):
            train(small, tmp_path, recorder)
    monkeypatch.undo()
    purged, values = [], {}
    for path in sorted((tmp_path / "tensorboard").glob("events.*")):
        content = path.read_bytes()
        # A record consists of a length, a checksum, an event and another checksum.
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            event = event_pb2.Event.FromString(content[12 : 12 + length])
            content = content[16 + length :]
            if event.HasField("session_log"):
                purged.append(event.step)
            for value in event.summary.value:
                values[value.tag, event.step] = value.simple_value
    assert purged == [1, 3]
    for row in rows_of(tmp_path):
        for name, tag in TAGS.items():
            assert values[tag, row["epoch"]] == pytest.approx(row[name], rel=1e-6)


def test_loss_line_has_the_mean_since_the_previous_line(small: Config, tmp_path: Path) -> None:
    """The mean is the same if the run stops and resumes between the two lines."""
    config = override(small, ["train.log_every=4"])
    recorder = Recorder("[EPOCH 001", send(signal.SIGTERM))
    with pytest.raises(Stopped):
        train(config, tmp_path, recorder)
    train(config, tmp_path)
    lines = (tmp_path / "log.txt").read_text().splitlines()
    assert [line for line in lines if line.startswith("[EPOCH")] == [
        f"[EPOCH {row['epoch']:03d} | IT 00004] LOSS: {row['train_loss']:.3f}"
        for row in rows_of(tmp_path)
    ]


def test_terminal_shows_a_bar_and_the_epochs(small: Config, tmp_path: Path) -> None:
    output = io.StringIO()
    output.isatty = lambda: True
    train(small, tmp_path, Progress(Console(file=output, width=150)))
    text = output.getvalue()
    assert "epoch 1/3" in text
    assert "12/12" in text
    assert "validating" in text
    assert "testing" in text
    assert "[EPOCH 001" not in text


def test_file_has_no_bar_if_colors_are_forced(small: Config, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    output = io.StringIO()
    train(small, tmp_path, Progress(Console(file=output, highlight=False)))
    assert "epoch 3/3" in output.getvalue()
    assert "12/12" not in output.getvalue()
    assert "\r" not in output.getvalue()


def test_markup_in_a_line_is_printed_unchanged(tmp_path: Path) -> None:
    output = io.StringIO()
    progress = Progress(Console(file=output))
    progress.open_log(tmp_path / "log.txt")
    progress.line("runs/a[b]/seed0 [red]")
    progress.close()
    assert output.getvalue() == (tmp_path / "log.txt").read_text() == "runs/a[b]/seed0 [red]\n"


def test_validation_outputs_are_stored_while_the_run_is_unfinished(
    small: Config, tmp_path: Path
) -> None:
    class Read(cifar_jax.Callback):
        accuracies: ClassVar[list[tuple[int, float]]] = []

        def on_epoch_end(self, state: Any, metrics: Any) -> None:
            with np.load(tmp_path / "run/validation.npz") as file:
                correct = file["validation_logits"].argmax(-1) == file["validation_labels"]
                self.accuracies.append((int(file["epoch"]), 100 * correct.mean()))

    config = override(small, ["data.validation=32"])
    train(config, tmp_path / "run", callbacks=[Read()])
    rows = rows_of(tmp_path / "run")
    assert Read.accuracies == [
        (row["epoch"], pytest.approx(row["validation_accuracy"])) for row in rows
    ]
    assert len(rows) == 3
    assert not (tmp_path / "run/validation.npz").exists()
    assert "validation_logits" in np.load(tmp_path / "run/outputs.npz")
