"""The base class of callbacks, and the data about a run that callbacks receive."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from cifar_jax.runs.folder import RunFolder
from cifar_jax.runs.schemas import MetricsRow, Result, RunIdentity

if TYPE_CHECKING:
    import numpy as np

    from cifar_jax.training.plan import Epoch
    from cifar_jax.training.setup import Setup
    from cifar_jax.training.step import TrainState


class CallMetrics(NamedTuple):
    """Training metrics after a compiled call. One call runs several training steps."""

    step: int
    """Number of completed steps of the run."""
    loss_sum: float
    """Sum of the losses of all images in the epoch so far, in nats."""
    correct: int
    """Number of correctly classified images in the epoch so far."""
    images: int
    """Number of images that the epoch has trained on so far."""
    images_per_second: float
    """Mean number of images trained on per second, since the epoch started or resumed."""

    @property
    def loss(self) -> float:
        """Mean loss of the epoch so far, in nats."""
        return self.loss_sum / max(self.images, 1)

    @property
    def accuracy(self) -> float:
        """Accuracy of the epoch so far, in percent."""
        return 100 * self.correct / max(self.images, 1)


@dataclass
class RunContext:
    """Data about a run in progress, shared by the training loop and its callbacks."""

    setup: Setup
    folder: RunFolder
    identity: RunIdentity
    """Experiment, seed and settings of the run."""
    rows: list[MetricsRow]
    """Metrics of the completed epochs, in order."""
    elapsed_before: float = 0.0
    """Time spent on the run in earlier sessions, in seconds."""
    logged: tuple[float, int] = (0.0, 0)
    """Sum of the losses in nats, and number of images. Both count the images of the epoch up to the
    last loss line in the log."""
    images_per_second: float = 0.0
    """Training speed of the most recent epoch, in images per second. A resumed run starts with the
    saved speed."""
    validation_logits: np.ndarray | None = None
    """Logits of the validation images after the most recent epoch, float32 `[N, classes]`. None if
    this session has not validated yet, or if there are no validation images."""
    stop_signal: int | None = None
    """Number of the signal that stops the run, the same in all processes. None if no signal
    arrived."""
    epoch: Epoch = field(init=False)
    """The epoch that is being trained."""
    began: float = field(default_factory=time.perf_counter)

    def elapsed(self) -> float:
        """Return the time spent on the run so far, over all sessions, in seconds."""
        return self.elapsed_before + time.perf_counter() - self.began


class Callback:
    """Base class of callbacks. By default, its methods do nothing.

    A method that keeps arrays of the state must copy them, because the next train step reuses their
    memory.

    In a multi-process run, each process calls its own callbacks. Only the main process should write
    files; see `cifar_jax.distributed.is_main_process`.
    """

    def on_start(self, context: RunContext, state: TrainState) -> None:
        """Called before the first step of a session, with the initial or restored state."""

    def on_call(self, state: TrainState, metrics: CallMetrics) -> None:
        """Called after each compiled call, which runs several training steps."""

    def on_epoch_end(self, state: TrainState, metrics: MetricsRow) -> None:
        """Called after each epoch and its validation, before the epoch's checkpoint is saved.

        If the process is killed before the checkpoint is saved, the epoch is trained and reported
        again.
        """

    def on_end(self, result: Result) -> None:
        """Called once, after the test images are evaluated."""

    def close(self) -> None:
        """Called at the end of every session that began with `on_start`, also after an error."""


class CallbackList(Callback):
    """Calls several callbacks in order."""

    def __init__(self, callbacks: Sequence[Callback]) -> None:
        self._callbacks = callbacks
        self._started: list[Callback] = []

    def on_start(self, context: RunContext, state: TrainState) -> None:
        """Call `on_start` of each callback."""
        for callback in self._callbacks:
            callback.on_start(context, state)
            self._started.append(callback)

    def on_call(self, state: TrainState, metrics: CallMetrics) -> None:
        """Call `on_call` of each callback."""
        for callback in self._callbacks:
            callback.on_call(state, metrics)

    def on_epoch_end(self, state: TrainState, metrics: MetricsRow) -> None:
        """Call `on_epoch_end` of each callback."""
        for callback in self._callbacks:
            callback.on_epoch_end(state, metrics)

    def on_end(self, result: Result) -> None:
        """Call `on_end` of each callback."""
        for callback in self._callbacks:
            callback.on_end(result)

    def close(self) -> None:
        """Call `close` of each callback that has started, even if one of them fails."""
        failure = None
        for callback in self._started:
            try:
                callback.close()
            except Exception as error:
                failure = failure or error
        if failure:
            raise failure
