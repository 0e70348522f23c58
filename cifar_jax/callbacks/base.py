"""The interface of callbacks, and what they know about the run."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from cifar_jax.runs.folder import RunFolder
from cifar_jax.runs.schemas import MetricsRow, Result, RunIdentity

if TYPE_CHECKING:
    from cifar_jax.training.plan import Epoch
    from cifar_jax.training.setup import Setup
    from cifar_jax.training.step import TrainState


class CallMetrics(NamedTuple):
    """Training metrics after a compiled call of several steps."""

    step: int
    """Steps of the run so far."""
    loss_sum: float
    """Sum of the losses over the images of the epoch so far, in nats."""
    correct: int
    """Correctly classified images of the epoch so far."""
    images: int
    """Images of the epoch so far."""
    images_per_second: float
    """In this epoch and session."""

    @property
    def loss(self) -> float:
        """Mean loss of the epoch so far."""
        return self.loss_sum / max(self.images, 1)

    @property
    def accuracy(self) -> float:
        """Accuracy of the epoch so far, in percent."""
        return 100 * self.correct / max(self.images, 1)


@dataclass
class RunContext:
    """A run in progress, shared by the loop and its callbacks."""

    setup: Setup
    folder: RunFolder
    identity: RunIdentity
    """Experiment, seed and settings."""
    rows: list[MetricsRow]
    """Metrics of the completed epochs."""
    elapsed_before: float = 0.0
    """Seconds that earlier sessions trained."""
    logged: tuple[float, int] = (0.0, 0)
    """Sum of losses and number of images of the epoch at its last loss line in the log."""
    stop_signal: int | None = None
    """Signal that asks to save and stop; the same in all processes."""
    epoch: Epoch = field(init=False)
    """The epoch in progress."""
    began: float = field(default_factory=time.perf_counter)

    def elapsed(self) -> float:
        """Return the seconds that the run has trained, over all sessions."""
        return self.elapsed_before + time.perf_counter() - self.began


class Callback:
    """Base class of callbacks. Every method does nothing by default.

    The loop donates the state to its next call: copy what you want to keep. In a multi-process run
    each process calls its own callbacks; `cifar_jax.distributed.is_main_process` tells which one
    may write.
    """

    def on_start(self, context: RunContext, state: TrainState) -> None:
        """Run before the first step of a session. `state` may be a restored one."""

    def on_call(self, state: TrainState, metrics: CallMetrics) -> None:
        """Run after each compiled call, about five times per second."""

    def on_epoch_end(self, state: TrainState, metrics: MetricsRow) -> None:
        """Run after each epoch and its validation, before the epoch's checkpoint.

        If the process is killed in between, the epoch is trained and reported again.
        """

    def on_end(self, result: Result) -> None:
        """Run once, when the run is finished."""

    def close(self) -> None:
        """Run at the end of every session, also after an error."""


class CallbackList(Callback):
    """Runs several callbacks in their order."""

    def __init__(self, callbacks: Sequence[Callback]) -> None:
        self._callbacks = callbacks

    def on_start(self, context: RunContext, state: TrainState) -> None:
        """Run `on_start` of each callback."""
        for callback in self._callbacks:
            callback.on_start(context, state)

    def on_call(self, state: TrainState, metrics: CallMetrics) -> None:
        """Run `on_call` of each callback."""
        for callback in self._callbacks:
            callback.on_call(state, metrics)

    def on_epoch_end(self, state: TrainState, metrics: MetricsRow) -> None:
        """Run `on_epoch_end` of each callback."""
        for callback in self._callbacks:
            callback.on_epoch_end(state, metrics)

    def on_end(self, result: Result) -> None:
        """Run `on_end` of each callback."""
        for callback in self._callbacks:
            callback.on_end(result)

    def close(self) -> None:
        """Run `close` of each callback, even if one of them fails."""
        failure = None
        for callback in self._callbacks:
            try:
                callback.close()
            except Exception as error:
                failure = failure or error
        if failure:
            raise failure
