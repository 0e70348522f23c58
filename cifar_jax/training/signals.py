"""Lets a signal end a run when it can be saved."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from cifar_jax import distributed
from cifar_jax.errors import Stopped


class Signals:
    """What came of SIGINT and SIGTERM. Make one with `remembered`."""

    def __init__(self) -> None:
        self.received: int | None = None
        """The first that came."""
        self._nothing_new = self._at_once = False

    def check(self) -> None:
        """Raise `Stopped` if one came, to whichever process of the run. All must call it."""
        (signum,) = distributed.all_max(self.received or 0)
        if signum:
            raise Stopped(int(signum))

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """While inside, where there is nothing to save, one ends the run as soon as it comes.

        As soon as Python runs again, that is: a compilation is not interrupted. One of several
        processes does not leave alone, as the others would wait for it: all end when they are
        through.
        """
        self.check()
        self._nothing_new, self._at_once = True, distributed.is_single_process()
        try:
            yield
        finally:
            self._nothing_new = self._at_once = False
        self.check()

    def _receive(self, signum: int) -> None:
        self.received = signum
        if self._at_once:
            raise Stopped(signum)
        what = b"stopping when all are through" if self._nothing_new else b"saving after this step"
        # It may have come amid a print, which a second one would corrupt or deadlock.
        os.write(2, b"\n" + what + b"; once more to stop at once\n")


@contextmanager
def remembered() -> Iterator[Signals]:
    """Remember the first SIGINT or SIGTERM instead of acting on it; the next acts as before.

    Only the main thread can handle signals: in another one none is remembered.
    """
    signals = Signals()
    if threading.current_thread() is not threading.main_thread():
        yield signals
        return
    before = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}
    # A shell has its background jobs ignore the Ctrl-C that is meant for another.
    before = {signum: old for signum, old in before.items() if old != signal.SIG_IGN}

    def restore() -> None:
        for signum, handler in before.items():
            signal.signal(signum, handler)

    def receive(signum: int, frame: object) -> None:
        restore()
        signals._receive(signum)

    for signum in before:
        signal.signal(signum, receive)
    try:
        yield signals
    finally:
        restore()
