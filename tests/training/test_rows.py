"""What is told of an epoch by a clock that only its steps move: in metrics.jsonl, in the log, in
TensorBoard's charts and on the bar, of a run that was stopped twice."""

import errno
import json
import signal
import struct
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import by_hand
import pytest
from short_runs import Spy, send, train
from tensorboardX.proto import event_pb2
from tiny import TINY

from cifar_jax.config import Config
from cifar_jax.errors import Stopped
from cifar_jax.training import fit, loop

SECONDS = 0.37
"""A call takes, which takes two of the four steps of an epoch."""
SPEED = 2 * 8 / SECONDS
TAGS = {
    **{"train_loss": "train/loss", "train_accuracy": "train/accuracy"},
    **{"validation_loss": "validation/loss", "validation_accuracy": "validation/accuracy"},
    **{name: name for name in ("learning_rate", "images_per_second", "wall_seconds")},
}


class Bar(Spy):
    """As on a terminal, and keeps what it is to show."""

    def __init__(self, *when_and_do: Any) -> None:
        super().__init__(*when_and_do)
        self.places: list[tuple[int, int]] = []
        self.speeds: list[float] = []

    @property
    def live(self) -> bool:
        return True

    def update(
        self, step: int, epoch: int, images_per_second: float, loss: float, accuracy: float
    ) -> None:
        self.places.append((step, epoch))
        self.speeds.append(images_per_second)


class Told(NamedTuple):
    """What there is to read of the run."""

    config: Config
    rows: list[dict[str, Any]]
    result: dict[str, Any]
    log: list[str]
    charts: list[Path]
    """TensorBoard's files, one of each start."""
    bars: list[Bar]


@pytest.fixture(scope="module")
def told(
    make_config: Callable[..., Config], tiny: None, tmp_path_factory: pytest.TempPathFactory
) -> Told:
    """The run is stopped after the last step of its first epoch, and after its second epoch."""
    config = make_config(
        **TINY | {"model__name": "dense", "epochs": 3, "train__log_every": 4},
        **{"schedule__name": "linear", "train__steps_per_call": 2},
    )
    folder, now, sums = tmp_path_factory.mktemp("told"), [0.0], loop.loss_sums

    def waited(state: Any) -> tuple[float, int]:
        now[0] += SECONDS
        return sums(state)

    bars = [
        *(Bar(text, send(signal.SIGTERM)) for text in ("[EPOCH 001 | IT 00004]", "epoch 2/")),
        Bar(),
    ]
    result: dict[str, Any] = {}
    charts: list[Path] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "loss_sums", waited)
        for module in (fit, loop):
            patch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: now[0]))
        for bar in bars:
            try:
                result = train(config, folder, bar)
            except Stopped:
                assert bar is not bars[-1]
            # TensorBoard's file is named by the second, and the next start may be as quick.
            (made,) = (folder / "tensorboard").glob("events.*")
            charts.append(made.rename(made.with_name(f"start-{len(charts)}")))
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return Told(config, rows, result, (folder / "log.txt").read_text().splitlines(), charts, bars)


def test_the_speed_of_an_epoch_is_that_of_the_steps_of_a_start(told: Told) -> None:
    """The first epoch had none left when it was resumed."""
    expected = [0.0, round(SPEED, 1), round(SPEED, 1)]
    assert [row["images_per_second"] for row in told.rows] == expected == [0.0, 43.2, 43.2]
    assert told.result["images_per_second"] == 43.2


def test_the_seconds_of_a_run_add_up_over_its_starts(told: Told) -> None:
    assert [row["wall_seconds"] for row in told.rows] == [0.7, 1.5, 2.2]  # 0.74 an epoch
    assert told.result["wall_seconds"] == 2.2


def test_the_bar_follows_twice_a_second(told: Told) -> None:
    """No more often than that, and with the speed of the epoch so far."""
    assert [bar.places for bar in told.bars] == [[(4, 1)], [(8, 2)], [(12, 3)]]
    speeds = [speed for bar in told.bars for speed in bar.speeds]
    assert speeds == pytest.approx([SPEED] * 3)


def test_the_learning_rate_is_that_of_the_epochs_last_update(told: Told) -> None:
    expected = [by_hand.rate(told.config, step, 4) for step in (3, 7, 11)]
    assert [row["learning_rate"] for row in told.rows] == pytest.approx(expected, rel=1e-5)


def test_a_line_has_the_mean_loss_since_the_line_before(told: Told) -> None:
    """Here since the beginning of its epoch."""
    expected = [
        f"[EPOCH {row['epoch']:03d} | IT 00004] LOSS: {row['train_loss']:.3f}" for row in told.rows
    ]
    assert [line for line in told.log if line.startswith("[EPOCH")] == expected


def test_the_charts_show_what_the_rows_hold(told: Told) -> None:
    """Each start draws anew what was not over when it began."""
    begun, shown = [], {}
    for path in told.charts:
        content = path.read_bytes()
        while content:  # a length, 4 bytes, the event, 4 bytes
            (length,) = struct.unpack("<Q", content[:8])
            event = event_pb2.Event.FromString(content[12 : 12 + length])
            content = content[16 + length :]
            if event.HasField("session_log"):
                begun.append(event.step)
            for value in event.summary.value:
                shown[value.tag, event.step] = value.simple_value
    assert begun == [1, 1, 3]
    expected = {(tag, row["epoch"]): row[name] for row in told.rows for name, tag in TAGS.items()}
    assert shown == pytest.approx(expected, rel=1e-6)


def test_charts_that_cannot_be_written_are_named_and_leave_nothing_at_work(tmp_path: Path) -> None:
    """A thread that is left would die with a traceback."""

    def full() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")  # as `write` has it: without a name

    board = loop._board(tmp_path, 1)
    writer = board.__enter__().file_writer.event_writer  # pyright: ignore
    thread, writer.flush = writer._worker, full
    with pytest.raises(OSError, match="No space left") as refused:
        board.__exit__(None, None, None)
    assert refused.value.filename == str(tmp_path)
    assert not thread.is_alive()
    del writer.flush
    writer.close()  # the interpreter would as it ends, too
