"""Lets a signal end a run after the step in progress, when it can be saved."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Stopped(Exception):
    """A signal ended the run after it was saved."""

    def __init__(self, signum: int) -> None:
        name = signal.Signals(signum).name
        super().__init__(f"saved and stopped by {name}; the same command goes on from here")
        self.signum = signum


@contextmanager
def remembered() -> Iterator[Callable[[], int | None]]:
    """Remember the first SIGINT or SIGTERM instead of acting on it; the next acts as before.

    Yields a function that says which came, if one did. Only the main thread can handle signals:
    in another one none is remembered.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    before = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}
    # A shell has its background jobs ignore the Ctrl-C that is meant for another.
    before = {signum: old for signum, old in before.items() if old != signal.SIG_IGN}

    def restore() -> None:
        for signum, handler in before.items():
            signal.signal(signum, handler)

    def remember(signum: int, frame: object) -> None:
        received.append(signum)
        restore()
        # It may have come amid a print, which a second one would corrupt or deadlock.
        os.write(2, b"\nsaving after this step; once more to stop at once\n")

    for signum in before:
        signal.signal(signum, remember)
    try:
        yield lambda: received[0] if received else None
    finally:
        restore()
