"""The callback that saves and stops a run when a signal arrives."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from cifar_jax import distributed
from cifar_jax.callbacks.base import Callback, CallMetrics, RunContext
from cifar_jax.errors import Stopped
from cifar_jax.runs.schemas import MetricsRow

if TYPE_CHECKING:
    from cifar_jax.training.step import TrainState

SIGNALS = [
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")
    if hasattr(signal, name)
]
"""Signals after which a run saves and stops, such as Ctrl-C and signals of job schedulers."""


class StopOnSignal(Callback):
    """Asks the training loop to save and stop when a signal arrives.

    This is a context manager. Inside the context, the first signal does not end the process, but
    stops the loop after the current compiled call. A second signal ends the process as usual. If
    the context is not in the main thread, this class does nothing, because Python handles signals
    only in the main thread.
    """

    def __init__(self) -> None:
        self._received: int | None = None
        self._immediate = False
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> StopOnSignal:
        if threading.current_thread() is threading.main_thread():
            handlers = {signum: signal.getsignal(signum) for signum in SIGNALS}
            # Do not handle ignored signals, such as SIGHUP under `nohup`.
            self._handlers = {s: h for s, h in handlers.items() if h != signal.SIG_IGN}
            for signum in self._handlers:
                signal.signal(signum, self._receive)
        return self

    def __exit__(self, *exception: object) -> None:
        self._restore_handlers()

    def on_start(self, context: RunContext, state: TrainState) -> None:
        """Keep the data about the run, so that later calls can set `stop_signal`."""
        self._context = context

    def on_call(self, state: TrainState, metrics: CallMetrics) -> None:
        """Ask the training loop to stop if any process received a signal."""
        self._context.stop_signal = self._agreed()

    def on_epoch_end(self, state: TrainState, metrics: MetricsRow) -> None:
        """Ask the training loop to stop if any process received a signal."""
        self._context.stop_signal = self._agreed()

    def check(self) -> None:
        """Raise `Stopped` if any process received a signal. All processes must call this method."""
        if signum := self._agreed():
            raise Stopped(signum)

    @contextmanager
    def immediate(self) -> Iterator[None]:
        """Return a context in which a signal ends the run without saving.

        In a single-process run, the signal ends the run at once. In a multi-process run, it ends
        the run at the end of the context. Otherwise the other processes would wait for a process
        that has stopped.
        """
        self.check()
        self._immediate = distributed.is_single_process()
        try:
            yield
        finally:
            self._immediate = False
        self.check()

    def _agreed(self) -> int | None:
        (signum,) = distributed.all_max(self._received or 0)
        return int(signum) or None

    def _receive(self, signum: int, frame: object) -> None:
        self._restore_handlers()
        self._received = signum
        if self._immediate:
            raise Stopped(signum)
        # Do not use `print` here, because the signal may have interrupted another `print`.
        os.write(2, b"\nsaving after this step; repeat the signal to stop at once\n")

    def _restore_handlers(self) -> None:
        for signum, handler in self._handlers.items():
            signal.signal(signum, handler)
        self._handlers = {}
