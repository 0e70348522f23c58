"""The callback that saves checkpoints."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from cifar_jax import distributed
from cifar_jax.callbacks.base import Callback, CallMetrics, RunContext
from cifar_jax.errors import Diverged
from cifar_jax.runs import best_epoch
from cifar_jax.runs.checkpoints import Checkpoints
from cifar_jax.runs.schemas import MetricsRow

if TYPE_CHECKING:
    from cifar_jax.training.step import TrainState


class Checkpoint(Callback):
    """Saves checkpoints of the training state in the background.

    A checkpoint is saved after each epoch, at intervals within an epoch, and before the run stops.

    Args:
      checkpoints: the checkpoints of the run.
      minutes: minutes between checkpoints within an epoch. None: save only after each epoch.
    """

    def __init__(self, checkpoints: Checkpoints, minutes: float | None) -> None:
        self._checkpoints = checkpoints
        self._seconds = None if minutes is None else 60 * minutes

    def on_start(self, context: RunContext, state: TrainState) -> None:
        """Start the timer for the next checkpoint."""
        self._context = context
        self._saved_at = time.perf_counter()

    def on_call(self, state: TrainState, metrics: CallMetrics) -> None:
        """Save if `minutes` have passed since the last save, or if the run is about to stop."""
        due = self._seconds is not None and time.perf_counter() - self._saved_at > self._seconds
        # All processes must save a checkpoint at the same step.
        (due,) = distributed.all_max(due)
        if due or self._context.stop_signal:
            self.save(state, end_of_epoch=False)

    def on_epoch_end(self, state: TrainState, metrics: MetricsRow) -> None:
        """Save a checkpoint at the end of the epoch."""
        best_by = self._context.setup.config.train.best_by
        # A checkpoint with the score None is ranked by its validation accuracy.
        score = None if best_by == "accuracy" else best_epoch.score(metrics, best_by)
        accuracy = metrics.validation_accuracy
        self.save(state, score=score, end_of_epoch=True, validation_accuracy=accuracy)

    def save(self, state: TrainState, score: float | None = None, **about: Any) -> None:
        """Save a checkpoint, with the training time and the position of the last loss line.

        Args:
          state: the state to save.
          score: number that ranks the checkpoint. None: rank it by its validation accuracy.
          **about: further arguments of `Checkpoints.save`.

        Raises:
          Diverged: the state contains NaN or infinity, and is not saved.
        """
        if not is_finite(state):
            raise diverged(
                self._context, f"the weights are NaN or infinite after step {state.step}"
            )
        context = self._context
        extra = {
            "elapsed_seconds": round(context.elapsed(), 3),
            "images_per_second": context.images_per_second,
            "logged": list(context.logged),
        } | ({} if score is None else {"score": score})
        self._checkpoints.save(state, extra=extra, **about)
        self._saved_at = time.perf_counter()


def diverged(context: RunContext, reason: str) -> Diverged:
    """Return the error for a run whose loss or weights are no longer finite."""
    row = context.rows[-1] if context.rows else None
    rate = f" (the rate was {row.learning_rate:g} in epoch {row.epoch})" if row else ""
    groups = " or the rates in param_groups" if context.setup.config.param_groups else ""
    kept = " The last checkpoint is kept." if row else ""
    return Diverged(f"{reason}. Lower optimizer.lr{groups}{rate}, and start a new run.{kept}")


@jax.jit
def _all_finite(tree: Any) -> jax.Array:
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]).all()


def is_finite(state: TrainState) -> bool:
    """Return whether the weights, BatchNorm statistics and optimizer state are all finite."""
    return bool(_all_finite((state.variables, state.opt_state, state.averaged)))
