"""The callback that writes the metrics of each epoch for TensorBoard."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tensorboardX import SummaryWriter

from cifar_jax import distributed
from cifar_jax.callbacks.base import Callback, RunContext
from cifar_jax.runs.schemas import MetricsRow

if TYPE_CHECKING:
    from cifar_jax.training.step import TrainState


class TensorBoard(Callback):
    """Writes event files to the run's `tensorboard` folder. Only the main process writes."""

    _writer: SummaryWriter | None = None

    def on_start(self, context: RunContext, state: TrainState) -> None:
        """Open an event file. It replaces the events of all epochs after the restored epoch."""
        if not distributed.is_main_process():
            return
        # Use an unbounded queue: if a full disk ends the writer's thread, a full queue would block.
        self._writer = SummaryWriter(
            str(context.folder.tensorboard), purge_step=int(state.epoch) + 1, max_queue=0
        )

    def on_epoch_end(self, state: TrainState, metrics: MetricsRow) -> None:
        """Write each metric of the epoch, under a name such as `train/loss`."""
        if self._writer is None:
            return
        for name, value in metrics.model_dump(exclude={"epoch", "step"}).items():
            if value is not None:
                split, _, metric = name.partition("_")
                tag = f"{split}/{metric}" if split in ("train", "validation") else name
                self._writer.add_scalar(tag, value, metrics.epoch)

    def close(self) -> None:
        """Close the event file."""
        if self._writer is None:
            return
        try:
            self._writer.close()
        except OSError:
            # Stop the writer's thread, which would otherwise fail later with a traceback.
            if worker := self._writer.file_writer.event_writer._worker:  # pyright: ignore
                worker.stop()
            raise
