"""Errors that the command line prints in one line, without a traceback.

Importing this module does not import JAX.
"""

import difflib
import signal
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path


class UserError(Exception):
    """An error that the user can fix. The message says what is wrong, where, and what to do.

    The command line prints the message as one line on standard error and exits with code 2.
    """


class Diverged(UserError):
    """Raised when the loss or the weights of a run are NaN or infinite."""


class Stopped(BaseException):
    """Raised when a signal ends a run.

    It is not an `Exception`, so `except Exception` does not catch it.

    Args:
      signum: number of the signal.
      saved: whether the run was saved before it stopped.
    """

    def __init__(self, signum: int, *, saved: bool = False) -> None:
        name = signal.Signals(signum).name
        action = "saved and stopped" if saved else "stopped"
        super().__init__(f"{action} by {name}. The same command continues the run.")
        self.signum, self.saved = signum, saved


def explain(error: Exception) -> str | None:
    """Return the message to print for an error, or None if the error is a bug in this package."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    # Do not import JAX here: commands that compute nothing should start fast.
    jax_error = sys.modules["jax"].errors.JaxRuntimeError if "jax" in sys.modules else ()
    device_is_full = isinstance(error, jax_error) and "RESOURCE_EXHAUSTED" in str(error)
    if device_is_full or isinstance(error, MemoryError):
        reason = str(error).partition("\n")[0].rstrip(".") or "MemoryError"
        return (
            f"out of memory: {reason}. End other programs, lower batch_size or "
            "train.eval_batch_size, or use more devices."
        )
    return None


def one_line(error: BaseException, file: Path | str | None = None) -> str:
    """Describe an exception in one line: its class, its message and its line number in `file`.

    >>> one_line(ValueError("no such layer"))
    'ValueError: no such layer'
    """
    message = next(iter(str(error).strip().splitlines()), "").rstrip(".")
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == str(file)]
    return f"{type(error).__name__}: {message}" + (f" (line {lines[-1]})" if lines else "")


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """Return a number and a noun, which is singular or plural.

    >>> counted(1, "epoch"), counted(1437, "image"), counted(2, "class", "classes")
    ('1 epoch', '1,437 images', '2 classes')
    """
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"


def nearest(name: str, names: Iterable[str]) -> str:
    """Return `; did you mean NAME?` for the name most similar to `name`, or an empty string.

    The last parts of dotted names are compared first. A name is too different if more than about a
    quarter of its letters differ: `car` does not suggest `cat`.

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
