"""The callback that records a few train steps with the JAX profiler."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import jax

from cifar_jax import distributed
from cifar_jax.callbacks.base import Callback, CallMetrics
from cifar_jax.errors import UserError, counted
from cifar_jax.runs.schemas import Result

if TYPE_CHECKING:
    from cifar_jax.training.step import TrainState

FIRST_CALL, CALLS = 2, 3
"""Number of compiled calls before the profiler trace, and number of compiled calls in the trace."""


class Profile(Callback):
    """Writes a profiler trace of a few train steps, for TensorBoard and Perfetto.

    The trace covers three compiled calls. Each call runs several train steps, which are already
    compiled when the trace begins. Only the main process writes a trace.

    Args:
      folder: folder of the trace. It is created when the trace begins.
      line: function that prints a message about the trace.

    Raises:
      UserError: the folder cannot be created or written to.
    """

    def __init__(self, folder: Path, line: Callable[[str], None] = print) -> None:
        self._folder, self._line = folder, line
        self._calls = 0
        self._first: int | None = None
        self._step = 0
        self._written = False
        try:
            # Check early that the folder can be created, because the trace begins only later.
            above = folder.absolute()
            existing = next(path for path in (above, *above.parents) if path.exists())
            with tempfile.TemporaryFile(dir=existing):
                pass
        except OSError as error:
            raise UserError(
                f"the trace cannot be written to {folder}: {error.strerror}. Choose another folder "
                "for --profile."
            ) from error

    def on_call(self, state: TrainState, metrics: CallMetrics) -> None:
        """Start the trace after the second compiled call, and end it three compiled calls later."""
        self._calls += 1
        self._step = metrics.step
        if self._calls == FIRST_CALL and distributed.is_main_process():
            self._first = metrics.step
            jax.profiler.start_trace(str(self._folder), create_perfetto_trace=True)
        elif self._calls == FIRST_CALL + CALLS:
            self._stop()

    def on_end(self, result: Result) -> None:
        """End an unfinished trace. Print a message if the session was too short for a trace."""
        self._stop()
        if not self._written and distributed.is_main_process():
            self._line(
                "no trace is written, because this session has too few steps: choose a smaller "
                "train.steps_per_call or more epochs"
            )

    def close(self) -> None:
        """End an unfinished trace if the run is stopped."""
        self._stop()

    def _stop(self) -> None:
        if self._first is None:
            return
        steps, self._first = self._step - self._first, None
        jax.profiler.stop_trace()
        self._written = True
        self._line(f"a trace of {counted(steps, 'step')} is in {self._folder}")
