"""The callback that writes the metrics of each epoch for TensorBoard."""

from __future__ import annotations

import re
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tensorboardX.proto import event_pb2
from tensorboardX.record_writer import RecordWriter
from tensorboardX.summary import scalar

from cifar_jax import distributed
from cifar_jax.callbacks.base import Callback, RunContext
from cifar_jax.files import naming
from cifar_jax.runs.schemas import MetricsRow

if TYPE_CHECKING:
    from cifar_jax.training.step import TrainState

_events: Any = (
    event_pb2  # Type checkers do not know the protobuf classes, which are created at run time.
)


class TensorBoard(Callback):
    """Writes event files to the run's `tensorboard` folder. Only the main process writes.

    Each event is written immediately. `tensorboardX.SummaryWriter` is not used, because its queue
    needs shared memory.
    """

    _writer: RecordWriter | None = None

    def on_start(self, context: RunContext, state: TrainState) -> None:
        """Open an event file that starts at the next epoch.

        TensorBoard then discards the events of this and later epochs in older files.
        """
        if not distributed.is_main_process():
            return
        self._path = _next_file(context.folder.tensorboard)
        with naming(self._path):
            self._path.parent.mkdir(exist_ok=True)
            self._writer = RecordWriter(str(self._path))
        self._write(file_version="brain.Event:2")
        start = _events.SessionLog(status=_events.SessionLog.START)
        self._write(step=int(state.epoch) + 1, session_log=start)

    def on_epoch_end(self, state: TrainState, metrics: MetricsRow) -> None:
        """Write each metric of the epoch, under a name such as `train/loss`."""
        if self._writer is None:
            return
        for name, value in metrics.model_dump(exclude={"epoch", "step"}).items():
            if value is not None:
                split, _, metric = name.partition("_")
                tag = f"{split}/{metric}" if split in ("train", "validation") else name
                self._write(step=metrics.epoch, summary=scalar(tag, value))

    def close(self) -> None:
        """Close the event file."""
        if self._writer:
            with naming(self._path):
                self._writer.close()

    def _write(self, **fields: Any) -> None:
        assert self._writer
        with naming(self._path):
            event = _events.Event(wall_time=time.time(), **fields)
            self._writer.write(event.SerializeToString())
            self._writer.flush()


def _next_file(folder: Path) -> Path:
    """Return the path of a new event file. Its name sorts after the names of all existing files.

    TensorBoard reads event files in the order of their names. The current time alone would not be
    a safe name, because the clock may have been set back since the last session.
    """
    names = [path.name for path in folder.glob("events.out.tfevents.*")]
    times = [int(match[0]) for name in names if (match := re.search(r"(?<=tfevents\.)\d+", name))]
    seconds = max([int(time.time()), *(time + 1 for time in times)])
    return folder / f"events.out.tfevents.{seconds:010}.{socket.gethostname()}"
