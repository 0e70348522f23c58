"""Makes the undisturbed runs, and collects the outcomes of all faults."""

import random
import shutil
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from tools.torture import SCRATCH
from tools.torture.compare import check_equal
from tools.torture.runs import Failure, RunKind, start


@dataclass
class Outcome:
    """A fault and its outcome."""

    fault: str
    phase: str
    """What the run did at that time."""
    kind: str
    seed: str
    """Of the random choices."""
    seconds: float | None = None
    """From the fault to the end of the process, if it ends on its own."""
    wrong: str = ""
    """What is wrong; empty if nothing is."""


@dataclass
class Harness:
    """The undisturbed runs, and the outcomes so far."""

    seed: int
    deadline: float
    part: str = ""
    """First part of the names of its folders."""
    outcomes: list[Outcome] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    references: dict[str, Path] = field(default_factory=dict)
    """Folder of the undisturbed run of each kind."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Time of each undisturbed run, with its programs already compiled."""
    _folders: int = 0

    def folder(self, parent: Path = SCRATCH) -> Path:
        """Return a folder that does not exist yet."""
        self._folders += 1
        return parent / f"{self.part}{self._folders}"

    def rng(self, name: str) -> tuple[random.Random, str]:
        """Return a generator of random numbers, and its seed."""
        seed = f"{self.seed}/{name}"
        return random.Random(seed), seed

    def is_over(self, what: str) -> bool:
        """Return whether the time is over. If so, note that `what` is skipped."""
        over = time.monotonic() > self.deadline
        if over:
            self.skipped.append(what)
        return over

    def make_reference(self, kind: RunKind) -> None:
        """Make the undisturbed run of a kind. It is made twice, and both must be equal."""
        first, second = self.folder(), self.folder()
        self.finish(kind, first)
        began = time.monotonic()
        self.finish(kind, second)
        self.seconds[kind.name] = time.monotonic() - began
        check_equal(second, first)
        self.references[kind.name] = first
        say(f"{kind.name}: {self.seconds[kind.name]:.1f} s undisturbed")

    def finish(self, kind: RunKind, folder: Path) -> None:
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

    def check(
        self, kind: RunKind, folder: Path, outcomes: Sequence[Outcome], lost: Sequence[int] = ()
    ) -> None:
        """Finish a disturbed run, compare it with the undisturbed one, and count its outcomes.

        Args:
          kind: the run.
          folder: its folder. It is deleted if nothing is wrong.
          outcomes: the faults that disturbed the run.
          lost: epochs whose metrics the run may lack.
        """
        try:
            self.finish(kind, folder)
            check_equal(folder, self.references[kind.name], lost)
        except Failure as failure:
            for outcome in outcomes:
                outcome.wrong = outcome.wrong or str(failure)
        for outcome in outcomes:
            self.add(outcome)
        if not any(outcome.wrong for outcome in outcomes):
            shutil.rmtree(folder)

    def add(self, outcome: Outcome) -> None:
        """Count an outcome and print it."""
        self.outcomes.append(outcome)
        o = outcome
        after = "" if o.seconds is None else f", ended after {o.seconds:.1f} s"
        verdict = f"WRONG: {o.wrong}" if o.wrong else "as undisturbed"
        say(f"[{o.seed}] {o.kind}: {o.fault} while {o.phase}{after}: {verdict}")

    def merge(self, part: "Harness") -> None:
        """Add what another harness has collected."""
        self.outcomes += part.outcomes
        self.skipped += part.skipped
        self.references |= part.references
        self.seconds |= part.seconds


def say(text: str) -> None:
    """Print a line with the time."""
    print(f"{datetime.now(UTC):%H:%M:%S} {text}", flush=True)
