"""The faults of `make torture`.

Each public function disturbs the runs of one trial, and checks the runs.
"""

import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from tools.torture import CACHE, SCRATCH
from tools.torture.compare import last_checkpoint
from tools.torture.runs import (
    ADAM,
    BASIC,
    NET,
    PHASES,
    STARTING,
    TWO_PROCESSES,
    Failure,
    Moment,
    RunProcess,
    start,
)
from tools.torture.trials import Outcome, Trial, say

SIGNALS_PER_TRIAL = 8
SIGNAL_SECONDS = 10
"""Largest allowed seconds from a signal to the end of a process, unless the process compiles."""
PARTNER_SECONDS = 60
"""Largest allowed seconds from the end of one process to the end of the run's other process."""


def make_trials(*, kills: int, signals: int, damages: int, disks: int, pairs: int) -> list[Trial]:
    """Return the trials for the options of the command line."""
    kinds, trials = (BASIC, ADAM, NET), []
    for name, signums, count in (
        ("kills", (signal.SIGKILL,), kills),
        ("signals", (signal.SIGTERM, signal.SIGINT), signals),
    ):
        for number, sent in enumerate(range(0, count, SIGNALS_PER_TRIAL)):
            arguments = signums, min(SIGNALS_PER_TRIAL, count - sent)
            trials.append(Trial(f"{name}-{number}", kinds[number % 3], send_signals, arguments))
    for number in range(damages):
        for name in DAMAGES:
            trials.append(Trial(f"{name}-{number}", ADAM, damage_newest_checkpoint, (name,)))
    if damages:
        trials += [Trial(f"metrics-{name}", ADAM, damage_metrics, (name,)) for name in LOSSES]
        trials.append(Trial("all-checkpoints", ADAM, damage_all_checkpoints))
        trials.append(Trial("move", ADAM, move_folder))
    for phase in PHASES[:disks]:
        trials.append(Trial(f"disk-{phase}", ADAM, fill_disk, (phase,)))
        if phase in ("compiling", "training", "saving", "testing"):
            trials.append(Trial(f"disk-two-{phase}", TWO_PROCESSES, fill_disk, (phase,)))
    for number in range(pairs):
        trials.append(Trial(f"pair-{number}", TWO_PROCESSES, kill_one_of_two, (number,)))
    return trials


def send_signals(trial: Trial, signums: Sequence[int], count: int) -> None:
    """Send `count` signals at random moments, to as many runs as needed."""
    while count:
        folder, outcomes = trial.folder(), []
        while count:
            moment = Moment.draw(trial.rng, trial.reference.seconds)
            cold = SCRATCH / f"cold-{folder.name}"
            # With an empty cache, the run must compile its programs.
            cache = cold if moment.phase == "compiling" else CACHE
            (process,) = start(trial.kind, folder, cache)
            if not process.wait_for(moment):
                if code := process.wait():
                    raise Failure(f"ended with {code} before the signal: {process.output()}")
                break
            outcomes.append(_send(process, trial.rng.choice(signums), folder))
            shutil.rmtree(cold, ignore_errors=True)
            count -= 1
        trial.check(folder, outcomes)


def _send(process: RunProcess, signum: int, folder: Path) -> Outcome:
    """Send a signal and wait for the end of the process."""
    is_finished = (folder / "result.json").exists()
    began = time.monotonic()
    process.send(signum)
    outcome = Outcome(signal.Signals(signum).name, process.phase())
    code = process.wait()
    if signum == signal.SIGKILL:
        outcome.phase = process.phase()
    else:
        outcome.seconds = time.monotonic() - began
        if outcome.seconds > SIGNAL_SECONDS and outcome.phase != "compiling":
            outcome.wrong = f"ended only after {outcome.seconds:.0f} s"
    if is_finished and code == 0:
        return outcome
    # Before the run starts, a signal has its default action. The exit code is then -signum.
    if code not in (-signum, 128 + signum):
        outcome.wrong = f"ended with {code}: {process.output()}"
    elif code > 0 and not process.printed_one_line():
        outcome.wrong = f"did not print one line: {process.output()}"
    return outcome


DAMAGES = (
    *("arrays truncated", "a bit of the arrays flipped", "a bit of any file flipped"),
    *("every file emptied", "half of the files deleted", "metadata deleted"),
)


def damage_newest_checkpoint(trial: Trial, damage: str) -> None:
    """Damage the newest checkpoint of a stopped run."""
    folder, rng = _stopped_run(trial), trial.rng
    checkpoint = last_checkpoint(folder)
    arrays, *others = files = _files(checkpoint)  # The largest file has the arrays.
    match damage:
        case "arrays truncated":
            os.truncate(arrays, rng.randrange(arrays.stat().st_size))
        case "a bit of the arrays flipped":
            _flip(arrays, rng)
        case "a bit of any file flipped":
            _flip(rng.choice([arrays, *(file for file in others if file.stat().st_size)]), rng)
        case "every file emptied":
            for file in files:
                os.truncate(file, 0)
        case "half of the files deleted":
            for file in rng.sample(files, len(files) // 2):
                file.unlink()
        case "metadata deleted":
            (checkpoint / "meta/metadata").unlink()
    trial.check(folder, [Outcome(f"newest checkpoint: {damage}", "stopped")])


def damage_all_checkpoints(trial: Trial) -> None:
    """Damage all checkpoints. The run must be refused until a backup is restored."""
    folder, outcome = _stopped_run(trial), Outcome("all checkpoints: a bit flipped", "stopped")
    checkpoints = folder / "checkpoints"
    backup = shutil.copytree(checkpoints, trial.folder())
    for file in _files(checkpoints):
        if file.stat().st_size > 1000:  # Orbax may ignore a flipped bit in a small file.
            _flip(file, trial.rng)
    damaged = {file: file.read_bytes() for file in _files(checkpoints)}
    (process,) = start(trial.kind, folder)
    if process.wait() != 2 or not process.printed_one_line():
        outcome.wrong = f"was not refused with a one-line error: {process.output()}"
    elif damaged != {file: file.read_bytes() for file in _files(checkpoints)}:
        outcome.wrong = "changed the checkpoints"
    shutil.rmtree(checkpoints)
    shutil.move(backup, checkpoints)
    trial.check(folder, [outcome])


LOSSES = {"a line lost": [2], "a line cut": [1], "deleted": [1, 2, 3]}
"""Epochs whose metrics are lost, for each kind of damage to metrics.jsonl."""


def damage_metrics(trial: Trial, damage: str) -> None:
    """Damage metrics.jsonl of a stopped run."""
    folder = _stopped_run(trial)
    metrics = folder / "metrics.jsonl"
    first, second, *others = metrics.read_text().splitlines(keepends=True)
    match damage:
        case "a line lost":
            metrics.write_text("".join([first, *others]))
        case "a line cut":
            metrics.write_text("".join([first[:20] + "\n", second, *others]))
        case "deleted":
            metrics.unlink()
    trial.check(folder, [Outcome(f"metrics.jsonl: {damage}", "stopped")], LOSSES[damage])


def move_folder(trial: Trial) -> None:
    """Move a stopped run."""
    folder = SCRATCH / "moved äöü, 2"
    shutil.move(_stopped_run(trial), folder)
    trial.check(folder, [Outcome("folder moved", "stopped")])


def _stopped_run(trial: Trial) -> Path:
    """Return the folder of a run that was stopped in its fourth epoch, with several checkpoints."""
    folder = trial.folder()
    (process,) = start(trial.kind, folder)
    if not process.wait_for(Moment("training", 4, 0.0)):
        raise Failure(f"ended before it was stopped: {process.output()}")
    process.send(signal.SIGTERM)
    process.wait()
    return folder


def _flip(file: Path, rng: random.Random) -> None:
    """Flip a random bit of a file."""
    content = bytearray(file.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    file.write_bytes(content)


def _files(folder: Path) -> list[Path]:
    """Return the files in a folder, the largest first."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return sorted(files, key=lambda path: -path.stat().st_size)


def fill_disk(trial: Trial, phase: str) -> None:
    """Fill a small tmpfs disk while a run is in `phase`. Free the space after the run has ended."""
    disk = trial.folder()
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        say(f"{trial.name} does not run, because this user cannot mount a file system")
        return
    try:
        _fill(trial, phase, disk)
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=False)


def _fill(trial: Trial, phase: str, disk: Path) -> None:
    folder, filler = disk / "run", disk / "filler"
    number = 0 if phase == STARTING else 1
    if phase in ("training", "validating", "writing metrics", "saving"):
        number = trial.rng.randint(2, 3)
    delay = trial.rng.uniform(0, 0.2) if phase == "compiling" else 0.0
    processes = start(trial.kind, folder)
    if not processes[0].wait_for(Moment(phase, number, delay)):
        raise Failure(f"ended before the phase '{phase}': {processes[0].output()}")
    for process in processes:
        process.send(signal.SIGSTOP)
    is_finished = (folder / "result.json").exists()
    with suppress(OSError), filler.open("wb", buffering=0) as file:
        while file.write(b"\0" * 4096):
            pass
    for process in processes:
        process.send(signal.SIGCONT)
    began = time.monotonic()
    codes = [process.wait() for process in processes]
    two = " of two processes" if len(processes) == 2 else ""
    seconds = time.monotonic() - began
    outcome = Outcome(f"full disk{two}", phase, seconds)
    # One of two processes may end with an error of JAX, because the other process has ended.
    explained = [p for p, code in zip(processes, codes, strict=True) if code == 2]
    as_promised = 0 not in codes and explained and all(p.printed_one_line() for p in explained)
    if not as_promised and not (is_finished and not any(codes)):
        outcome.wrong = f"ended with {codes}: {' | '.join(p.output() for p in processes)}"
    if two and seconds > PARTNER_SECONDS:
        outcome.wrong = outcome.wrong or f"ended only after {seconds:.0f} s"
    filler.unlink()
    trial.check(folder, [outcome])


def kill_one_of_two(trial: Trial, number: int) -> None:
    """Kill one of the two processes of a run. The other process must end by itself."""
    folder = trial.folder()
    phase = ("training", "saving", "validating", "compiling")[number % 4]
    moment = Moment(phase, 1 if phase == "compiling" else 2, trial.rng.uniform(0, 0.3))
    processes = start(trial.kind, folder)
    victim, survivor = processes if number % 2 == 0 else processes[::-1]
    if not victim.wait_for(moment):
        raise Failure(f"ended before the phase '{phase}': {victim.output()}")
    victim.send(signal.SIGKILL)
    began = time.monotonic()
    victim.wait()
    which = "first" if victim is processes[0] else "second"
    code, seconds = survivor.wait(), time.monotonic() - began
    outcome = Outcome(f"SIGKILL to the {which} of two", victim.phase(), seconds)
    if code == 0 or seconds > PARTNER_SECONDS:
        outcome.wrong = (
            f"the other process ended with {code} after {seconds:.0f} s: {survivor.output()}"
        )
    trial.check(folder, [outcome])
