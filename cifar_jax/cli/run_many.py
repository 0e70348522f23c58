"""Several runs, one after the other: one that fails does not keep the rest from their turn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from cifar_jax.errors import Stopped, UserError, explain

if TYPE_CHECKING:
    from cifar_jax.training.fit import Run


def train_each(
    runs: Sequence[Run], train: Callable[[Run], str], say: Callable[[str], object]
) -> None:
    """Train `runs`, and `say` at the end which are finished and which are not.

    Args:
      runs: in the order in which they are trained.
      train: trains a run to its end, and returns the line that is said of it.
      say: prints a line.

    Raises:
      Stopped: a signal came. The run at work is saved, and those after it are not begun.
      UserError: not every run is finished. Where one ended in a fault, that is raised instead.
    """
    lines = []
    finished, stop, fault = 0, None, None
    for run in runs:
        name = f"{run.experiment} seed {run.seed}"
        if stop:
            done = (run.workdir / "result.json").exists()
            finished += done
            lines.append(f"{name}: {'finished before' if done else 'not trained in this start'}")
            continue
        try:
            line = train(run)
            finished += 1
        except Stopped as error:
            stop = error
            line = f"{name}: {'saved and stopped' if error.saved else 'stopped'}"
        except UserError as error:
            line = f"{name}: failed: {error}"
        except Exception as error:
            fault = fault or error
            text = explain(error)
            text = text or f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
            line = f"{name}: failed: {text}"
        lines.append(line)
        say(line)
    say(f"\n{finished} of {len(runs)} are finished:")
    for line in lines:
        say(f"  {line}")
    if stop:
        raise stop
    if fault:
        raise fault
    if finished < len(runs):
        raise UserError(f"{len(runs) - finished} failed; the same command goes on with them")
