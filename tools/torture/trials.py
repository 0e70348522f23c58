"""Trials: disturbed runs, which are finished and compared with undisturbed ones."""

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
    """A fault and its outcome."""

    fault: str
    phase: str
    """What the run did at that time."""
    seconds: float | None = None
    """From the fault to the end of the process, if that has to end on its own."""
    wrong: str = ""
    """What is wrong; empty if nothing is."""


class Reference(NamedTuple):
    """The undisturbed run of a kind."""

    folder: Path
    seconds: float
    """Its time, with its programs already compiled."""


@dataclass
class Trial:
    """One or more faults of the same sort. The other fields are set by `run`."""

    name: str
    kind: RunKind
    fault: Callable[..., None]
    """Called with this trial and `arguments`: disturbs runs and calls `check` for each."""
    arguments: tuple[Any, ...] = ()
    outcomes: list[Outcome] = field(default_factory=list)
    rng: random.Random = field(init=False)
    reference: Reference = field(init=False)

    def run(self, references: Mapping[str, Reference], seed: int, deadline: float) -> "Trial":
        """Return this trial with its outcomes; without any if the time is over."""
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
        """Finish a disturbed run, compare it with the undisturbed one, and add its outcomes.

        The metrics of the epochs in `lost` may be missing. The folder is deleted if all is right.
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
        verdict = f"WRONG: {outcome.wrong}" if outcome.wrong else "as undisturbed"
        fault = f"{outcome.fault} while {outcome.phase}"
        say(f"{self.name} ({self.kind.name}): {fault}{after}: {verdict}")


def finish(kind: RunKind, folder: Path) -> None:
    """Train a run to its end.

    Raises:
      Failure: it does not finish.
    """
    processes = start(kind, folder)
    for process in processes:
        if code := process.wait():
            for other in processes:
                if other.is_running():
                    other.send(signal.SIGKILL)
            raise Failure(f"started again, it ended with {code}: {process.output()}")


def make_reference(kind: RunKind) -> Reference:
    """Make the undisturbed run of a kind. It is made twice, and both must be equal."""
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
