"""Train several runs, one after another. If a run fails, the next runs are still trained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from cifar_jax.callbacks.progress import result_line
from cifar_jax.errors import Stopped, UserError, explain
from cifar_jax.report.table import mean_std
from cifar_jax.runs.folder import finished_result
from cifar_jax.runs.schemas import Result

if TYPE_CHECKING:
    from cifar_jax.training.request import RunRequest


def train_each(
    requests: Sequence[RunRequest],
    train: Callable[[RunRequest], Result],
    say: Callable[[str], object],
) -> None:
    """Train runs one after another, and print a summary.

    The summary has a line for each run. For an experiment with several finished runs, another line
    has the mean and standard deviation of the test accuracies.

    Args:
      requests: the runs, in order.
      train: a function that trains one run and returns its result.
      say: a function that prints a line.

    Raises:
      Stopped: a signal arrived. The current run is saved, and later runs are not started.
      UserError: some runs failed.
      Exception: a run failed because of a bug. This exception is raised instead of UserError.
    """
    lines = []
    accuracies: dict[str, list[float]] = {}
    finished, stopped, bug = 0, None, None
    for request in requests:
        name = f"{request.experiment} seed {request.seed}"
        if stopped:
            done = _is_finished(request)
            finished += done
            lines.append(f"{name}: {'already finished' if done else 'not started'}")
            continue
        try:
            result = train(request)
            finished += 1
            lines.append(result_line(result))
            accuracies.setdefault(request.experiment, []).append(result.test_accuracy)
            continue
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
    for experiment, values in accuracies.items():
        if len(values) > 1:
            say(f"{experiment}: test accuracy {mean_std(values)} % over {len(values)} seeds")
    if stopped:
        raise stopped
    if bug:
        raise bug
    if failed := len(requests) - finished:
        again = "give the same command again to resume them"
        if requests[0].fresh:
            again = "train them again"
        raise UserError(
            f"{failed} of {len(requests)} runs failed (see above): correct the cause, then {again}"
        )


def _is_finished(request: RunRequest) -> bool:
    if request.fresh:  # A result in the folder is that of an old run.
        return False
    try:
        result = finished_result(request.workdir, request.identity(), extend=request.extend)
    except UserError:  # The folder holds another run.
        return False
    return result is not None
