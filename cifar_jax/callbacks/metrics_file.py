"""The callback that writes the metrics of each epoch to the run folder."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cifar_jax import distributed
from cifar_jax.callbacks.base import Callback, RunContext
from cifar_jax.runs.schemas import MetricsRow

if TYPE_CHECKING:
    from cifar_jax.training.step import TrainState


class MetricsFile(Callback):
    """Appends the metrics of each epoch to `metrics.jsonl`. Only the main process writes."""

    def on_start(self, context: RunContext, state: TrainState) -> None:
        """Store the run folder for later calls."""
        self._folder = context.folder

    def on_epoch_end(self, state: TrainState, metrics: MetricsRow) -> None:
        """Append the metrics of the epoch."""
        if distributed.is_main_process():
            self._folder.append_row(metrics)
