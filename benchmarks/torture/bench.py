"""The undisturbed runs, and what has become of the others."""

import random
import shutil
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.torture import SCRATCH
from benchmarks.torture.compare import hold
from benchmarks.torture.runs import (
    SUBJECTS,
    Fault,
    Subject,
    launch,
)


@dataclass
class Event:
    """A fault, and what became of it."""

    fault: str
    at: str
    subject: str
    seed: str
    ended: float | None = None
    """Seconds from the fault to the process's end, where it ends by itself."""
    wrong: str = ""


@dataclass
class Bench:
    """The undisturbed runs, and what has happened so far."""

    seed: int
    deadline: float
    subjects: Sequence[Subject] = SUBJECTS
    """What signals are sent to."""
    part: str = ""
    """Folders are named by it."""
    events: list[Event] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    """What an undisturbed run takes, with the programs compiled before."""
    references: dict[str, Path] = field(default_factory=dict)
    _count: int = 0

    def folder(self, parent: Path = SCRATCH) -> Path:
        """One that is not used yet."""
        self._count += 1
        return parent / f"{self.part}{self._count}"

    def rng(self, name: str) -> tuple[random.Random, str]:
        """What draws the moments of one run, and its seed."""
        seed = f"{self.seed}/{name}"
        return random.Random(seed), seed

    def prepare(self, subject: Subject) -> None:
        """Make the undisturbed run: twice, which must agree."""
        first, second = self.folder(), self.folder()
        self.finish(subject, first)
        began = time.monotonic()
        self.finish(subject, second)
        self.seconds[subject.name] = time.monotonic() - began
        hold(second, first)
        self.references[subject.name] = first
        say(f"{subject.name}: {self.seconds[subject.name]:.1f} s undisturbed")

    def finish(self, subject: Subject, folder: Path) -> None:
        """Start it undisturbed.

        Raises:
          Fault: it does not finish.
        """
        for start in (starts := launch(subject, folder)):
            if code := start.end():
                told = start.said()
                for other in starts:
                    if other.runs():
                        other.send(signal.SIGKILL)
                raise Fault(f"started again it ended with {code}: {told}")

    def take(self, part: "Bench") -> None:
        """Add what happened in a part."""
        self.events += part.events
        self.skipped += part.skipped
        self.seconds |= part.seconds
        self.references |= part.references

    def spent(self) -> bool:
        """Whether the time is over."""
        return time.monotonic() > self.deadline

    def held(
        self,
        subject: Subject,
        folder: Path,
        events: Sequence[Event],
        lost: Sequence[int] = (),
    ) -> None:
        """Finish a run that `events` happened to, compare it, and count them."""
        try:
            self.finish(subject, folder)
            hold(folder, self.references[subject.name], lost)
        except Fault as error:
            for event in events:
                event.wrong = event.wrong or str(error)
        for event in events:
            self.add(event)
        if not any(event.wrong for event in events):
            shutil.rmtree(folder)

    def add(self, event: Event) -> None:
        """Count it, and say so."""
        self.events.append(event)
        after = "" if event.ended is None else f", ended after {event.ended:.1f} s"
        outcome = f"WRONG: {event.wrong}" if event.wrong else "as undisturbed"
        say(f"[{event.seed}] {event.subject}: {event.fault} while {event.at}{after}: {outcome}")


def say(text: str) -> None:
    """Print it now."""
    print(f"{datetime.now(UTC):%H:%M:%S} {text}", flush=True)
