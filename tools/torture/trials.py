"""Trials disturb runs, finish them, and compare them with undisturbed runs."""

import random
import shutil
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from tools.torture import SCRATCH
from tools.torture.compare import check_equal
from tools.torture.runs import Failure, RunKind, start


@dataclass
class Outcome:
    """A fault in a run, and its effect."""

    fault: str
    phase: str
    """The phase of the run at the time of the fault."""
    seconds: float | None = None
    """Seconds from the fault to the end of the process. None if the fault requires no process to
    end."""
    wrong: str = ""
    """A description of the error. Empty if there is none."""


class Reference(NamedTuple):
    """An undisturbed run, with which disturbed runs of the same kind are compared."""

    folder: Path
    seconds: float
    """Wall time of the run in seconds, with all programs in the compilation cache."""


@dataclass
class Trial:
    """One or more faults of one kind. `run` sets `outcomes`, `rng` and `reference`."""

    name: str
    kind: RunKind
    fault: Callable[..., None]
    """Function that disturbs runs, and calls `check` for each run. It takes the trial and
    `arguments`."""
    arguments: tuple[Any, ...] = ()
    outcomes: list[Outcome] = field(default_factory=list)
    rng: random.Random = field(init=False)
    reference: Reference = field(init=False)

    def run(self, references: Mapping[str, Reference], seed: int, deadline: float) -> "Trial":
        """Return this trial with its outcomes, or with no outcomes after the deadline."""
        self.rng = random.Random(f"{seed}/{self.name}")
        self.reference = references[self.kind.name]
        if time.monotonic() < deadline:
            try:
                self.fault(self, *self.arguments)
            except Failure as failure:
                self.add(Outcome(self.name, "prepared", wrong=str(failure)))
        return self

    def folder(self) -> Path:
        """Return a folder that does not exist yet."""
        return SCRATCH / f"{self.name}.{time.monotonic_ns()}"

    def check(self, folder: Path, outcomes: Sequence[Outcome], lost: Sequence[int] = ()) -> None:
        """Finish a disturbed run, compare it with the undisturbed run, and add `outcomes`.

        The metrics of the epochs in `lost` may be missing. The folder is deleted if all is correct.
        """
        try:
            finish(self.kind, folder)
            check_equal(folder, self.reference.folder, lost)
        except Failure as failure:
            for outcome in outcomes:
                outcome.wrong = outcome.wrong or str(failure)
        for outcome in outcomes:
            self.add(outcome)
        if not any(outcome.wrong for outcome in outcomes):
            shutil.rmtree(folder)

    def add(self, outcome: Outcome) -> None:
        """Add an outcome and print it."""
        self.outcomes.append(outcome)
        after = "" if outcome.seconds is None else f", ended after {outcome.seconds:.1f} s"
        verdict = f"WRONG: {outcome.wrong}" if outcome.wrong else "equal to the undisturbed run"
        fault = f"{outcome.fault} while {outcome.phase}"
        say(f"{self.name} ({self.kind.name}): {fault}{after}: {verdict}")


def finish(kind: RunKind, folder: Path) -> None:
    """Train a run to its end.

    Raises:
      Failure: the run does not finish.
    """
    processes = start(kind, folder)
    for process in processes:
        if code := process.wait():
            for other in processes:
                if other.is_running():
                    other.send(signal.SIGKILL)
            raise Failure(f"the restarted run ended with {code}: {process.output()}")


def make_reference(kind: RunKind) -> Reference:
    """Train an undisturbed run twice. Raise a Failure if the two runs differ."""
    first, second = (SCRATCH / f"undisturbed {kind.name}.{number}" for number in (1, 2))
    finish(kind, first)
    began = time.monotonic()
    finish(kind, second)
    seconds = time.monotonic() - began
    check_equal(second, first)
    say(f"{kind.name}: {seconds:.1f} s undisturbed")
    return Reference(first, seconds)


def say(text: str) -> None:
    """Print a line with the time."""
    print(f"{datetime.now(UTC):%H:%M:%S} {text}", flush=True)
