"""Train several runs, one after another. If a run fails, the next runs are still trained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from cifar_jax.errors import Stopped, UserError, explain

if TYPE_CHECKING:
    from cifar_jax.training.request import RunRequest


def train_each(
    requests: Sequence[RunRequest],
    train: Callable[[RunRequest], str],
    say: Callable[[str], object],
) -> None:
    """Train runs one after another, and print a line about each run.

    Args:
      requests: the runs, in order.
      train: a function that trains one run and returns a line about its result.
      say: a function that prints a line.

    Raises:
      Stopped: a signal arrived. The run in progress is saved; later runs are not started.
      UserError: some runs failed.
      Exception: a run failed because of a bug. This exception is raised instead of UserError.
    """
    lines = []
    finished, stopped, bug = 0, None, None
    for request in requests:
        name = f"{request.experiment} seed {request.seed}"
        if stopped:
            done = (request.workdir / "result.json").exists()
            finished += done
            lines.append(f"{name}: {'already finished' if done else 'not started'}")
            continue
        try:
            line = train(request)
            finished += 1
        except Stopped as error:
            stopped = error
            line = f"{name}: {'saved and stopped' if error.saved else 'stopped'}"
        except Exception as error:
            message = explain(error)
            if message is None:
                bug = bug or error
                message = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
            line = f"{name}: failed: {message}"
        lines.append(line)
        say(line)
    say(f"\n{finished} of {len(requests)} runs are finished:")
    for line in lines:
        say(f"  {line}")
    if stopped:
        raise stopped
    if bug:
        raise bug
    if failed := len(requests) - finished:
        raise UserError(
            f"{failed} of {len(requests)} runs failed (see above): correct the cause, then give "
            "the same command again to resume them"
        )
