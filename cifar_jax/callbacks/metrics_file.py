"""The callback that writes the metrics and the validation logits to the run folder."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cifar_jax import distributed
from cifar_jax.callbacks.base import Callback, RunContext
from cifar_jax.runs.schemas import MetricsRow

if TYPE_CHECKING:
    from cifar_jax.training.step import TrainState


class MetricsFile(Callback):
    """Writes `metrics.jsonl` and `validation.npz` after each epoch, in the main process only."""

    def on_start(self, context: RunContext, state: TrainState) -> None:
        """Keep the data about the run, which `on_epoch_end` needs."""
        self._context = context

    def on_epoch_end(self, state: TrainState, metrics: MetricsRow) -> None:
        """Append the metrics of the epoch, and replace the stored validation logits."""
        context = self._context
        if not distributed.is_main_process():
            return
        context.folder.append_row(metrics)
        if context.validation_logits is not None:
            labels = context.setup.validation.labels
            context.folder.write_validation(context.validation_logits, labels, metrics.epoch)
