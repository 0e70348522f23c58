"""What is done to runs."""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from benchmarks.torture import SCRATCH
from benchmarks.torture.bench import Bench, Event
from benchmarks.torture.compare import last_checkpoint
from benchmarks.torture.runs import (
    PHASES,
    SUBJECTS,
    TOGETHER,
    Aim,
    Fault,
    Start,
    Subject,
    launch,
)

PER_RUN = 8  # kills, or signals, of one run
LEAVES_WITHIN = 10  # seconds after a signal, but in a compilation
OF_TWO = ("compiling", "training", "saving", "testing")  # the disk full, of two processes


def send_signals(bench: Bench, signums: Sequence[int], count: int) -> None:
    """So many of these signals at random moments, several in a run."""
    order = [
        subject for number in range(10) for subject in bench.subjects if subject.share > number
    ]
    left, number = count, 0
    while left and not bench.spent():
        subject = order[number % len(order)]
        number += 1
        rng, seed = bench.rng(f"{signal.Signals(signums[0]).name}-{number}")
        folder, events = bench.folder(), []
        for _ in range(min(PER_RUN, left)):
            aim = Aim.drawn(rng, bench.seconds[subject.name])
            signum = rng.choice(signums)
            is_cold = aim.phase == "compiling" and rng.random() < 0.5
            cold = SCRATCH / f"cold-{folder.name}" if is_cold else None
            start = Start(subject, folder, cold)
            if not start.wait_for(aim):
                start.end()  # before its turn
                break
            over = (folder / "result.json").exists()
            began = time.monotonic()
            start.send(signum)
            at = start.moment()
            event = Event(signal.Signals(signum).name, at, subject.name, seed)
            try:
                event.wrong = _ended_by(start, signum, over)
            except Fault as error:
                event.wrong = str(error)
            if signum == signal.SIGKILL:
                event.at = start.moment()
            else:
                event.ended = time.monotonic() - began
                if event.ended > LEAVES_WITHIN and at != "compiling":
                    event.wrong = event.wrong or f"gone only after {event.ended:.0f} s"
            if cold:
                shutil.rmtree(cold, ignore_errors=True)
            events.append(event)
        left -= len(events)
        bench.held(subject, folder, events)
    if left:
        names = "/".join(signal.Signals(signum).name for signum in signums)
        bench.skipped.append(f"{left} more of {names} (time was over)")


def _ended_by(start: Start, signum: int, over: bool) -> str:
    """What is wrong with how it ended; once all is `over` it may be gone before the signal."""
    code = start.end()
    if over and code == 0:
        return ""
    # Before it handles signals, the system's own way is as good: nothing has begun.
    if code not in (-signum, 128 + signum):
        return f"ended with {code}: {start.said()}"
    if code > 0 and (len(start.spoke()) != 1 or "Traceback" in start.said()):
        return f"said no one line: {start.said()}"
    return ""


def _stopped_run(bench: Bench, subject: Subject) -> Path:
    """One that was killed in its third epoch, with two checkpoints and more."""
    folder = bench.folder()
    start = Start(subject, folder)
    if not start.wait_for(Aim("training", 4, 0.0)):
        raise Fault(f"ended before it was stopped: {start.said()}")
    start.send(signal.SIGTERM)
    start.end()
    return folder


def _checkpoint_files(checkpoint: Path) -> list[Path]:
    """The largest first: that of the arrays."""
    files = (path for path in checkpoint.rglob("*") if path.is_file())
    return sorted(files, key=lambda path: -path.stat().st_size)


def _flip(file: Path, rng: random.Random) -> None:
    content = bytearray(file.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    file.write_bytes(content)


DAMAGES: dict[str, Callable[[list[Path], random.Random], object]] = {
    "arrays truncated": lambda files, rng: os.truncate(
        files[0], rng.randrange(files[0].stat().st_size)
    ),
    "a bit of the arrays flipped": lambda files, rng: _flip(files[0], rng),
    "a bit of any file flipped": lambda files, rng: _flip(
        rng.choice([file for file in files if file.stat().st_size]), rng
    ),
    "every file emptied": lambda files, rng: [os.truncate(file, 0) for file in files],
    "half of the files deleted": lambda files, rng: [
        file.unlink() for file in rng.sample(files, len(files) // 2)
    ],
    "metadata deleted": lambda files, rng: next(
        file for file in files if file.parent.name == "meta"
    ).unlink(),
}


def damage(bench: Bench, times: int) -> None:
    """The newest checkpoint in each way, then all of them; lost metrics; a moved folder."""
    subject = SUBJECTS[1]
    stopped = _stopped_run(bench, subject)
    for name, spoil in DAMAGES.items():
        for number in range(times if "deleted" not in name or "half" in name else 1):
            if bench.spent():
                bench.skipped.append(f"newest checkpoint: {name} (time was over)")
                break
            rng, seed = bench.rng(f"{name}-{number}")
            folder = bench.folder()
            shutil.copytree(stopped, folder)
            spoil(_checkpoint_files(last_checkpoint(folder)), rng)
            event = Event(f"newest checkpoint: {name}", "stopped", subject.name, seed)
            bench.held(subject, folder, [event])
    rng, seed = bench.rng("all")
    folder = bench.folder()
    shutil.copytree(stopped, folder)
    good = bench.folder()
    shutil.move(folder / "checkpoints", good)
    shutil.copytree(good, folder / "checkpoints")
    for checkpoint in (folder / "checkpoints").iterdir():
        # In each file of some size: one bit may lie where nothing is kept.
        for file in _checkpoint_files(checkpoint):
            if file.stat().st_size > 1000:
                _flip(file, rng)
    before = sorted(folder.rglob("checkpoints/**/*"))
    event = Event("all checkpoints: a bit flipped", "stopped", subject.name, seed)
    start = Start(subject, folder)
    if start.end() != 2 or len(start.spoke()) != 1:
        event.wrong = f"not refused in one line: {start.said()}"
    elif sorted(folder.rglob("checkpoints/**/*")) != before:
        event.wrong = "something was deleted"
    shutil.rmtree(folder / "checkpoints")
    shutil.move(good, folder / "checkpoints")  # as the line advises
    bench.held(subject, folder, [event])

    for name, spoil, lost in (
        ("a line lost", lambda lines: [*lines[:1], *lines[2:]], [2]),
        ("a line cut", lambda lines: [lines[0][:20] + "\n", *lines[1:]], [1]),
        ("deleted", lambda lines: [], [1, 2, 3]),
    ):
        folder = bench.folder()
        shutil.copytree(stopped, folder)
        metrics = folder / "metrics.jsonl"
        metrics.write_text("".join(spoil(metrics.read_text().splitlines(keepends=True))))
        event = Event(f"metrics.jsonl: {name}", "stopped", subject.name, "")
        bench.held(subject, folder, [event], lost)
    folder = SCRATCH / "moved [ä], 2: *"
    shutil.move(stopped, folder)
    bench.held(subject, folder, [Event("folder moved", "stopped", subject.name, "")])


def fill_disk(bench: Bench, phases: int) -> None:
    """No room left from each phase on, on a small file system of its own; of two processes too."""
    disk = SCRATCH / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(disk)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        bench.skipped.append("a full disk: no file system can be mounted here (be root)")
        return
    cases = [(SUBJECTS[1], phase) for phase in PHASES[:phases]]
    cases += [(TOGETHER, phase) for phase in PHASES[:phases] if phase in OF_TWO]
    try:
        for subject, phase in cases:
            if bench.spent():
                bench.skipped.append(f"a full disk while {phase} (time was over)")
                continue
            rng, seed = bench.rng(f"disk-{phase}")
            folder = bench.folder(disk)
            delay = rng.uniform(0, 0.2) if phase == "compiling" else 0.0
            times = rng.randint(2, 3) if phase in ("training", "validating", "saving") else 1
            starts = launch(subject, folder)
            if phase != "starting" and not starts[0].wait_for(Aim(phase, times, delay)):
                raise Fault(f"ended before it was {phase}: {starts[0].said()}")
            event = Event("no room on the disk", phase, subject.name, seed)
            event.fault += " of two processes" if subject is TOGETHER else ""
            over = False
            with (
                _halted(starts),
                contextlib.suppress(OSError),
                (disk / "filler").open("wb", buffering=0) as file,
            ):
                over = (folder / "result.json").exists()
                while file.write(b"\0" * 4096):
                    pass
            began = time.monotonic()
            codes = [start.end() for start in starts]
            event.ended = time.monotonic() - began
            # One says what is wrong, the other that it is alone, or the same.
            as_promised = 2 in codes and {*codes} <= {1, 2}
            for start in starts:
                if over and codes == [0]:
                    continue
                if not as_promised or len(start.spoke()) != 1 or "Traceback" in start.said():
                    event.wrong = f"ended with {codes}: {start.said()}"
            (disk / "filler").unlink()
            bench.held(subject, folder, [event])
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=False)


@contextlib.contextmanager
def _halted(starts: Sequence[Start]) -> Iterator[None]:
    for start in starts:
        start.send(signal.SIGSTOP)
    try:
        yield
    finally:
        for start in starts:
            start.send(signal.SIGCONT)


def kill_one_of_two(bench: Bench, times: int) -> None:
    """SIGKILL to one of two processes at random moments."""
    for number in range(times):
        if bench.spent():
            bench.skipped.append("one of two processes killed (time was over)")
            return
        rng, seed = bench.rng(f"two-{number}")
        folder = bench.folder()
        starts = launch(TOGETHER, folder)
        victim = starts[number % 2]
        phase = ["training", "saving", "validating", "compiling"][number % 4]
        aim = Aim(phase, 1 if phase == "compiling" else 2, rng.uniform(0, 0.3))
        events = []
        if victim.wait_for(aim):
            victim.send(signal.SIGKILL)
            began = time.monotonic()
            which = "first" if number % 2 == 0 else "second"
            event = Event(f"SIGKILL to the {which} of two", victim.moment(), TOGETHER.name, seed)
            events.append(event)
            try:
                victim.end()
                survivor = starts[1 - number % 2]
                code = survivor.end()
                event.ended = time.monotonic() - began
                if code == 0 or len(survivor.spoke()) != 1 or event.ended > 60:
                    event.wrong = f"survivor: {code} after {event.ended:.0f} s: {survivor.said()}"
            except Fault as error:
                event.wrong = f"survivor: {error}"
        for start in starts:
            start.end()
        bench.held(TOGETHER, folder, events)
