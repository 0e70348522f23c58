"""The faults. Each function disturbs runs and has them checked."""

import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from tools.torture import CACHE, SCRATCH
from tools.torture.compare import last_checkpoint
from tools.torture.harness import Harness, Outcome
from tools.torture.runs import (
    ADAM,
    PHASES,
    STARTING,
    TWO_PROCESSES,
    Failure,
    Moment,
    RunKind,
    RunProcess,
    start,
)

SIGNALS_PER_RUN = 8
SIGNAL_SECONDS = 10
"""Within this time a process must end after a signal, except while it compiles."""
PARTNER_SECONDS = 60
"""Within this time a process must end after its partner has died."""


def send_signals(
    harness: Harness, signums: Sequence[int], kinds: Sequence[RunKind], count: int
) -> None:
    """Send a number of signals at random moments, several to each run."""
    order = [kind for number in range(10) for kind in kinds if kind.share > number]
    names = "/".join(signal.Signals(signum).name for signum in signums)
    sent = number = 0
    while sent < count:
        if harness.is_over(f"{count - sent} of {count} {names}"):
            return
        kind = order[number % len(order)]
        number += 1
        rng, seed = harness.rng(f"{names}-{number}")
        folder, outcomes = harness.folder(), []
        for _ in range(min(SIGNALS_PER_RUN, count - sent)):
            moment = Moment.draw(rng, harness.seconds[kind.name])
            signum = rng.choice(signums)
            # Half of the runs that compile find no compiled programs.
            is_cold = moment.phase == "compiling" and rng.random() < 0.5
            cold = SCRATCH / f"cold-{folder.name}"
            (process,) = start(kind, folder, cold if is_cold else CACHE)
            if not process.wait_for(moment):
                if code := process.wait():
                    wrong = f"ended with {code} before the signal: {process.output()}"
                    outcomes.append(Outcome("none", process.phase(), kind.name, seed, wrong=wrong))
                break
            outcomes.append(_send(process, signum, folder, kind, seed))
            shutil.rmtree(cold, ignore_errors=True)
        sent += len(outcomes)
        harness.check(kind, folder, outcomes)


def _send(process: RunProcess, signum: int, folder: Path, kind: RunKind, seed: str) -> Outcome:
    """Send a signal and wait for the end of the process."""
    is_finished = (folder / "result.json").exists()
    began = time.monotonic()
    process.send(signum)
    outcome = Outcome(signal.Signals(signum).name, process.phase(), kind.name, seed)
    try:
        code = process.wait()
    except Failure as failure:
        outcome.wrong = str(failure)
        return outcome
    if signum == signal.SIGKILL:
        outcome.phase = process.phase()
    else:
        outcome.seconds = time.monotonic() - began
        if outcome.seconds > SIGNAL_SECONDS and outcome.phase != "compiling":
            outcome.wrong = f"ended only after {outcome.seconds:.0f} s"
    if is_finished and code == 0:
        return outcome
    # The default action (-signum) is right as long as the run has not begun.
    if code not in (-signum, 128 + signum):
        outcome.wrong = f"ended with {code}: {process.output()}"
    elif code > 0 and not process.printed_one_line():
        outcome.wrong = f"did not print one line: {process.output()}"
    return outcome


def _truncate(files: Sequence[Path], rng: random.Random) -> None:
    os.truncate(files[0], rng.randrange(files[0].stat().st_size))


def _flip(files: Sequence[Path], rng: random.Random) -> None:
    for file in files:
        content = bytearray(file.read_bytes())
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        file.write_bytes(content)


def _empty(files: Sequence[Path], rng: random.Random) -> None:
    for file in files:
        os.truncate(file, 0)


def _delete(files: Sequence[Path], rng: random.Random) -> None:
    for file in files:
        file.unlink()


_DAMAGES: dict[str, Callable[[list[Path], random.Random], object]] = {
    "arrays truncated": _truncate,
    "a bit of the arrays flipped": lambda files, rng: _flip(files[:1], rng),
    "a bit of any file flipped": lambda files, rng: _flip(
        [rng.choice([file for file in files if file.stat().st_size])], rng
    ),
    "every file emptied": _empty,
    "half of the files deleted": lambda files, rng: _delete(
        rng.sample(files, len(files) // 2), rng
    ),
    "metadata deleted": lambda files, rng: _delete(
        [file for file in files if file.parent.name == "meta"], rng
    ),
}
"""Damages of a checkpoint's files, which are given with the largest first: that of the arrays."""


def damage_files(harness: Harness, times: int) -> None:
    """Damage a stopped run: each damage of its newest checkpoint a number of times, others once."""
    kind = ADAM
    stopped = _stopped_run(harness, kind)

    def copy() -> Path:
        return shutil.copytree(stopped, harness.folder())

    def outcome(fault: str, seed: str = "") -> Outcome:
        return Outcome(fault, "stopped", kind.name, seed)

    for name, spoil in _DAMAGES.items():
        for number in range(times):
            if harness.is_over(f"newest checkpoint: {name}"):
                break
            rng, seed = harness.rng(f"{name}-{number}")
            folder = copy()
            spoil(_files(last_checkpoint(folder)), rng)
            harness.check(kind, folder, [outcome(f"newest checkpoint: {name}", seed)])
    _damage_all(harness, kind, copy(), outcome("all checkpoints: a bit flipped"))
    losses: Sequence[tuple[str, Callable[[list[str]], list[str]], list[int]]] = (
        ("a line lost", lambda lines: [*lines[:1], *lines[2:]], [2]),
        ("a line cut", lambda lines: [lines[0][:20] + "\n", *lines[1:]], [1]),
        ("deleted", lambda lines: [], [1, 2, 3]),
    )
    for name, change, lost in losses:
        metrics = (folder := copy()) / "metrics.jsonl"
        metrics.write_text("".join(change(metrics.read_text().splitlines(keepends=True))))
        harness.check(kind, folder, [outcome(f"metrics.jsonl: {name}")], lost)
    folder = SCRATCH / "moved äöü, 2"
    shutil.move(stopped, folder)
    harness.check(kind, folder, [outcome("folder moved")])


def _stopped_run(harness: Harness, kind: RunKind) -> Path:
    """Return a run that was stopped in its fourth epoch. It has several checkpoints."""
    folder = harness.folder()
    (process,) = start(kind, folder)
    if not process.wait_for(Moment("training", 4, 0.0)):
        raise Failure(f"ended before it was stopped: {process.output()}")
    process.send(signal.SIGTERM)
    process.wait()
    return folder


def _damage_all(harness: Harness, kind: RunKind, folder: Path, outcome: Outcome) -> None:
    """Damage every checkpoint: the run must be refused, and continue from a backup."""
    rng, outcome.seed = harness.rng("all")
    backup = shutil.copytree(folder / "checkpoints", harness.folder())
    for checkpoint in (folder / "checkpoints").iterdir():
        # All large files, because a bit of one may lie where nothing is stored.
        _flip([file for file in _files(checkpoint) if file.stat().st_size > 1000], rng)
    names = sorted(folder.rglob("checkpoints/**/*"))
    (process,) = start(kind, folder)
    if process.wait() != 2 or not process.printed_one_line():
        outcome.wrong = f"was not refused in one line: {process.output()}"
    elif sorted(folder.rglob("checkpoints/**/*")) != names:
        outcome.wrong = "changed the names of files"
    shutil.rmtree(folder / "checkpoints")
    shutil.move(backup, folder / "checkpoints")
    harness.check(kind, folder, [outcome])


def _files(checkpoint: Path) -> list[Path]:
    files = (path for path in checkpoint.rglob("*") if path.is_file())
    return sorted(files, key=lambda path: -path.stat().st_size)


def fill_disk(harness: Harness, count: int) -> None:
    """Fill the disk of runs, a small one of their own, in each of the first `count` phases."""
    disk = SCRATCH / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        harness.skipped.append("a full disk: mounting a file system needs root")
        return
    cases = [(ADAM, phase) for phase in PHASES[:count]]
    of_two = ("compiling", "training", "saving", "testing")
    cases += [(TWO_PROCESSES, phase) for phase in PHASES[:count] if phase in of_two]
    try:
        for kind, phase in cases:
            if not harness.is_over(f"a full disk while {phase}"):
                _fill_disk(harness, kind, phase, disk)
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=False)


def _fill_disk(harness: Harness, kind: RunKind, phase: str, disk: Path) -> None:
    rng, seed = harness.rng(f"disk-{phase}")
    is_repeated = phase in ("training", "validating", "writing metrics", "saving")
    moment = Moment(
        phase,
        0 if phase == STARTING else rng.randint(2, 3) if is_repeated else 1,
        rng.uniform(0, 0.2) if phase == "compiling" else 0.0,
    )
    folder, filler = harness.folder(disk), disk / "filler"
    processes = start(kind, folder)
    if not processes[0].wait_for(moment):
        raise Failure(f"ended before it was {phase}: {processes[0].output()}")
    outcome = Outcome("no room on the disk", phase, kind.name, seed)
    outcome.fault += " of two processes" if len(processes) > 1 else ""
    is_finished = False
    with _halted(processes), suppress(OSError), filler.open("wb", buffering=0) as file:
        is_finished = (folder / "result.json").exists()
        while file.write(b"\0" * 4096):
            pass
    began = time.monotonic()
    codes = [process.wait() for process in processes]
    outcome.seconds = time.monotonic() - began
    # One of two processes may learn only from JAX that its partner has ended.
    explained = [p for p, code in zip(processes, codes, strict=True) if code == 2]
    if not (is_finished and not any(codes)) and (
        0 in codes or not explained or not all(p.printed_one_line() for p in explained)
    ):
        outcome.wrong = f"ended with {codes}: {' | '.join(p.output() for p in processes)}"
    if len(processes) > 1 and outcome.seconds > PARTNER_SECONDS:
        outcome.wrong = outcome.wrong or f"ended only after {outcome.seconds:.0f} s"
    filler.unlink()
    harness.check(kind, folder, [outcome])


@contextmanager
def _halted(processes: Sequence[RunProcess]) -> Iterator[None]:
    for process in processes:
        process.send(signal.SIGSTOP)
    try:
        yield
    finally:
        for process in processes:
            process.send(signal.SIGCONT)


def kill_one_of_two(harness: Harness, count: int) -> None:
    """Kill one of two processes, a number of times. The other one must end on its own."""
    phases = ("training", "saving", "validating", "compiling")
    for number in range(count):
        if harness.is_over("one of two processes killed"):
            return
        rng, seed = harness.rng(f"two-{number}")
        folder, phase = harness.folder(), phases[number % 4]
        moment = Moment(phase, 1 if phase == "compiling" else 2, rng.uniform(0, 0.3))
        processes = start(TWO_PROCESSES, folder)
        victim, survivor = processes if number % 2 == 0 else processes[::-1]
        outcomes = []
        if victim.wait_for(moment):
            victim.send(signal.SIGKILL)
            began = time.monotonic()
            which = "first" if victim is processes[0] else "second"
            outcome = Outcome(
                f"SIGKILL to the {which} of two", victim.phase(), TWO_PROCESSES.name, seed
            )
            outcomes.append(outcome)
            try:
                code = survivor.wait()
                outcome.seconds = time.monotonic() - began
                if code == 0 or outcome.seconds > PARTNER_SECONDS:
                    outcome.wrong = (
                        f"the other ended with {code} after {outcome.seconds:.0f} s: "
                        f"{survivor.output()}"
                    )
            except Failure as failure:
                outcome.wrong = f"the other {failure}"
        for process in processes:
            process.wait()
        harness.check(TWO_PROCESSES, folder, outcomes)
