"""What ends a command in one line: an error that its user can mend, or a signal."""

import difflib
import signal
from collections.abc import Iterable


class UserError(Exception):
    """Something the user can mend: the message says what was wrong, where, and what to do.

    The command line prints the message as one line on standard error and exits with code 2.
    """


class Stopped(BaseException):
    """A signal ended the run. No `Exception`, so that nothing takes it for damaged data.

    Args:
      signum: which.
      saved: whether the run was saved because of it; else there was nothing new to save.
    """

    def __init__(self, signum: int, *, saved: bool = False) -> None:
        name = signal.Signals(signum).name
        what = "saved and stopped" if saved else "stopped"
        super().__init__(f"{what} by {name}; the same command goes on from here")
        self.signum, self.saved = signum, saved


def nearest(name: str, names: Iterable[str]) -> str:
    """Return `; did you mean NAME?` for the most similar of `names`, or an empty text.

    Dotted names are compared by their last part. At most about a quarter of the letters may differ,
    so `car` does not suggest `cat`.

    >>> nearest("resnet18-sdg", ["resnet18-sgd", "resnet10"])
    '; did you mean resnet18-sgd?'
    """
    by_last: dict[str, list[str]] = {}
    for other in names:
        by_last.setdefault(other.rpartition(".")[2], []).append(other)
    for last in difflib.get_close_matches(name.rpartition(".")[2], by_last, n=1, cutoff=0.75):
        (best,) = difflib.get_close_matches(name, by_last[last], n=1, cutoff=0)
        return f"; did you mean {best}?"
    return ""
