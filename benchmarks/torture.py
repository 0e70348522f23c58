"""Kills, stops, damages and starves runs, and holds them to undisturbed ones: `make torture`.

Each run is disturbed, and started again until it is finished; then the arrays of its last
checkpoint, its metrics, log, test logits and result must equal those of the same run undisturbed,
bit for bit but for clocks. The table goes to standard output, and with `--record FILE` also between
the marks `<!-- torture -->` and `<!-- /torture -->` of that file.

A process of a run is forked from this one, which has imported everything and computed nothing:
importing is most of the cost of a start. It reports what it is doing in a few shared bytes, so that
a fault can be aimed and its moment told.
"""

import argparse
import contextlib
import functools
import json
import logging
import mmap
import multiprocessing
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

SCRATCH = Path(tempfile.mkdtemp(prefix="cifar-jax-torture-"))
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(SCRATCH / "xla"))
os.environ |= {  # read when JAX is imported
    "JAX_PLATFORMS": "cpu",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "CIFAR_JAX_CACHE": str(SCRATCH / "data"),
    "TF_CPP_MIN_LOG_LEVEL": "2",
}

import jax  # noqa: E402
import numpy as np  # noqa: E402
import orbax.checkpoint as ocp  # noqa: E402
import sklearn.datasets  # noqa: E402, F401

from cifar_jax import catalog, cli, config, processes  # noqa: E402, F401
from cifar_jax.data import digits  # noqa: E402, F401
from cifar_jax.runs import environment  # noqa: E402
from cifar_jax.runs.checkpoints import Checkpoints  # noqa: E402
from cifar_jax.runs.folder import Workdir  # noqa: E402
from cifar_jax.training import fit, loop, programs  # noqa: E402

BEGIN, END = "<!-- torture -->", "<!-- /torture -->"
PHASES = (
    "starting",
    "loading data",
    "restoring",
    "compiling",
    "training",
    "validating",
    "saving",
    "testing",
    "writing the result",
)
WRITING = "writing a checkpoint"  # in the background, of whatever else
CLOCKS = ("git_commit", "wall_seconds", "compile_seconds", "images_per_second", "started", "starts")
PATIENCE = 600  # seconds for what takes some; more is a hang
PER_RUN = 8  # kills, or signals, of one run

_phase: Any = bytearray(2 * len(PHASES))
"""Of the process at hand: the phase it is in, and how often it has entered each."""


class Subject(NamedTuple):
    """A run of seconds: `cifar-jax train` with these words."""

    name: str
    words: tuple[str, ...]
    share: int
    """How many of ten signals go to it."""


def _subject(name: str, experiment: str, share: int, *settings: str) -> Subject:
    everywhere = ("data.dataset=digits", "train.log_every=4", *settings)
    words = [word for setting in everywhere for word in ("--set", setting)]
    return Subject(name, (experiment, *words), share)


PLATEAU = ("schedule.name=plateau", "schedule.patience=0", "schedule.threshold=0.9")
SUBJECTS = (
    # A save within an epoch whenever 0.3 s have gone by.
    _subject(
        *("basic", "basic", 4, "epochs=4", "batch_size=16", "data.train_images=512"),
        *("data.validation=144", "data.crop_padding=4", "data.flip=true"),
        *("train.checkpoint_minutes=0.005", "train.devices=1", "train.eval_batch_size=16"),
    ),
    _subject(
        *("basic, Adam, plateau", "basic", 4, "epochs=5", "batch_size=16", *PLATEAU),
        *("data.train_images=200", "data.validation=0.1", "data.last_batch=wrap"),
        *("optimizer.name=adam", "train.keep_checkpoints=1", "train.steps_per_call=2"),
        *("data.crop_padding=2", "train.devices=1"),
    ),
    # BatchNorm and dropout, and all of the rest.
    _subject(
        *("net-bn-gap, plateau", "net-bn-gap", 2, "epochs=4", "batch_size=8", *PLATEAU),
        *("data.train_images=40", "data.validation=24", "data.crop_padding=4"),
        *("data.flip=true", "train.checkpoint_minutes=0.01", "train.devices=1"),
    ),
)
TOGETHER = _subject(
    *("basic, two processes", "basic", 0, "epochs=4", "batch_size=16", *PLATEAU),
    *("data.train_images=256", "data.validation=144", "train.checkpoint_minutes=0.01"),
)


# --- A process of a run -------------------------------------------------------------------


@contextlib.contextmanager
def _in(phase: str) -> Iterator[None]:
    number, before = PHASES.index(phase), _phase[0]
    _phase[number + len(PHASES)] = min(_phase[number + len(PHASES)] + 1, 255)
    _phase[0] = number
    try:
        yield
    finally:
        _phase[0] = before


def _marked(function: Callable[..., Any], phase: str) -> Callable[..., Any]:
    @functools.wraps(function)
    def marked(*arguments: Any, **named: Any) -> Any:
        with _in(phase):
            return function(*arguments, **named)

    return marked


def mark_phases() -> None:
    """Have whatever is forked from here say what it does."""
    compiles = loop.Trainer._compile

    def compile_(self: loop.Trainer, state: Any) -> Any:
        with _in("compiling"):
            training, validate, seconds = compiles(self, state)
        return training, validate and _marked(validate, "validating"), seconds

    loop.Trainer._compile = compile_
    for owner, name, phase in (
        (programs, "setup", "loading data"),
        (Checkpoints, "restore_newest", "restoring"),
        (loop.Trainer, "_train_epoch", "training"),
        (Checkpoints, "save", "saving"),
        (fit, "_result", "testing"),
        (Workdir, "write_result", "writing the result"),
    ):
        setattr(owner, name, _marked(getattr(owner, name), phase))


def _child(words: Sequence[str], output: Path, cache: Path | None, surroundings: dict) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with output.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ |= surroundings
    if cache:
        jax.config.update("jax_compilation_cache_dir", str(cache))
    sys.unraisablehook = cli.unraisable  # as the command has it
    sys.exit(cli.run(words))


class Start:
    """A process that trains `subject` in `folder`; of several, one."""

    def __init__(
        self, subject: Subject, folder: Path, cache: Path | None = None, **surroundings: str
    ) -> None:
        global _phase
        _phase = self.phases = mmap.mmap(-1, 2 * len(PHASES))
        self.folder = folder
        rank = surroundings.get("JAX_PROCESS_ID", "")
        self.output = SCRATCH / f"{folder.name}.{time.monotonic_ns()}{rank}.out"
        words = ("train", *subject.words, "--workdir", str(folder))
        self._process = multiprocessing.get_context("fork").Process(
            target=_child, args=(words, self.output, cache, surroundings)
        )
        self.began = time.monotonic()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that threads are not forked: those are numpy's
            self._process.start()
        self.pid = self._process.pid or 0

    def runs(self) -> bool:
        """Whether it is still at work."""
        return self._process.exitcode is None

    def entered(self, phase: str) -> int:
        """How often it has come to that phase."""
        return self.phases[PHASES.index(phase) + len(PHASES)]

    def writes(self) -> bool:
        """Whether a checkpoint of it is half written."""
        return any((self.folder / "checkpoints").glob("*.orbax-checkpoint-tmp*"))

    def moment(self) -> str:
        """What it is doing, or was when it ended."""
        phase = PHASES[self.phases[0]]
        return WRITING if phase != "saving" and self.writes() else phase

    def wait_for(self, aim: "Aim") -> bool:
        """Until that moment; False if it ended before."""
        while self.runs():
            if not aim.phase:
                here = True
            elif aim.phase == WRITING:
                here = self.entered("saving") >= aim.time and self.writes()
            else:
                here = self.entered(aim.phase) >= aim.time
            if here:
                with contextlib.suppress(multiprocessing.TimeoutError):
                    self._process.join(aim.delay)
                return self.runs()
            time.sleep(0.001)
        return False

    def send(self, signum: int) -> None:
        """Send it a signal."""
        os.kill(self.pid, signum)

    def end(self) -> int:
        """Wait for it; its exit code.

        Raises:
          Fault: it does not end.
        """
        self._process.join(PATIENCE)
        if self.runs():
            self._process.kill()
            self._process.join()
            raise Fault(f"did not end within {PATIENCE} s: {self.said()}")
        return self._process.exitcode or 0

    def said(self) -> str:
        """The last it printed."""
        return self.output.read_text(errors="replace")[-1500:]

    def spoke(self) -> list[str]:
        """What it printed as errors of the command line."""
        lines = self.output.read_text(errors="replace").splitlines()
        return [line for line in lines if line.startswith("cifar-jax: ")]


class Fault(Exception):
    """A run did not do what is promised."""


class Aim(NamedTuple):
    """So many seconds after a phase was entered for so many times."""

    phase: str
    time: int
    delay: float

    @classmethod
    def drawn(cls, rng: random.Random, seconds: float) -> "Aim":
        """Any moment of a run of so many seconds, or one within a phase."""
        phase = rng.choice(["", "", *PHASES[1:5], "training", "validating", "saving", WRITING])
        if phase in ("", "restoring"):
            return cls("", 1, rng.uniform(0, seconds))
        times = {"training": 3, "validating": 2, "saving": 3, WRITING: 3}.get(phase, 1)
        longest = {"compiling": 1.0, "training": 0.5, "loading data": 0.2}.get(phase, 0.03)
        return cls(phase, rng.randint(1, times), rng.uniform(0, longest))


# --- Whether a run is as the undisturbed one ----------------------------------------------


def _last(folder: Path) -> Path:
    steps = [path for path in (folder / "checkpoints").iterdir() if path.name.isdecimal()]
    return max(steps, key=lambda path: int(path.name))


def _arrays(checkpoint: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Every array of the state, read without what is tested here."""
    reader, path = ocp.PyTreeCheckpointer(), checkpoint / "default"
    tree = getattr(reader.metadata(path), "item_metadata", reader.metadata(path))
    as_numpy = jax.tree.map(
        lambda _: ocp.RestoreArgs(restore_type=np.ndarray), getattr(tree, "tree", tree)
    )
    tree = reader.restore(path, args=ocp.args.PyTreeRestore(restore_args=as_numpy))
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    arrays = {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}
    return {name: (str(a.dtype), a.shape, a.tobytes()) for name, a in arrays.items()}


def _timeless(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key not in CLOCKS}


def _rows(folder: Path) -> dict[int, dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return {row["epoch"]: row for row in (_timeless(json.loads(line)) for line in lines)}


def _loss_lines(folder: Path) -> set[str]:
    lines = (folder / "log.txt").read_text().splitlines()
    return {line for line in lines if line.startswith("[EPOCH")}


def differences(folder: Path, reference: Path, lost: Sequence[int] = ()) -> list[str]:
    """In what two finished runs differ; epochs that `folder` may have lost the metrics of."""
    found = []
    ours, theirs = (
        _timeless(json.loads((path / "result.json").read_text())) for path in (folder, reference)
    )
    found += [f"result.json: {key}" for key in theirs if ours.get(key) != theirs[key]]
    rows, expected = _rows(folder), _rows(reference)
    found += [
        f"metrics of epoch {epoch}"
        for epoch in expected
        if epoch not in lost and rows.get(epoch) != expected[epoch]
    ]
    logits = [(path / "test_logits.npy").read_bytes() for path in (folder, reference)]
    if logits[0] != logits[1]:
        found.append("the logits of the test images")
    if _loss_lines(folder) != _loss_lines(reference):
        found.append("the lines of the log")
    last, expected_last = _last(folder), _last(reference)
    if last.name != expected_last.name:
        return [*found, f"last checkpoint {last.name}, not {expected_last.name}"]
    metas = [json.loads((path / "meta/metadata").read_text()) for path in (last, expected_last)]
    for meta in metas:
        del meta["extra"]["elapsed_seconds"]
    found += [f"checkpoint's {key}" for key in metas[1] if metas[0].get(key) != metas[1][key]]
    arrays, expected_arrays = _arrays(last), _arrays(expected_last)
    names = arrays.keys() | expected_arrays.keys()
    found += [f"array {n}" for n in sorted(names) if arrays.get(n) != expected_arrays.get(n)]
    if any((folder / "checkpoints").glob("*.orbax-checkpoint-tmp*")):
        found.append("a half-written checkpoint is left")
    return found


def _compare(folder: Path, reference: Path, lost: Sequence[int], sink: Any) -> None:
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    sink.send(differences(folder, reference, lost))


def hold(folder: Path, reference: Path, lost: Sequence[int] = ()) -> None:
    """Compare in a process of its own, since reading arrays starts JAX.

    Raises:
      Fault: they differ.
    """
    context = multiprocessing.get_context("fork")
    source, sink = context.Pipe(duplex=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        process = context.Process(target=_compare, args=(folder, reference, lost, sink))
        process.start()
    sink.close()
    try:
        found = source.recv()
    except EOFError:
        found = ["it cannot be compared"]
    process.join()
    if found:
        raise Fault("differs from the undisturbed run: " + "; ".join(found[:5]))


# --- What is done to runs -----------------------------------------------------------------


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
        for start in (starts := _starts(subject, folder)):
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


def _starts(subject: Subject, folder: Path, cache: Path | None = None) -> list[Start]:
    """The processes of a run: one, but for `TOGETHER`."""
    if subject.name != TOGETHER.name:
        return [Start(subject, folder, cache)]
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    several = {"JAX_COORDINATOR_ADDRESS": f"localhost:{port}", "JAX_NUM_PROCESSES": "2"}
    return [Start(subject, folder, JAX_PROCESS_ID=str(rank), **several) for rank in range(2)]


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
            began = time.monotonic()
            start.send(signum)
            at = start.moment()
            event = Event(signal.Signals(signum).name, at, subject.name, seed)
            try:
                event.wrong = _ended_by(start, signum)
            except Fault as error:
                event.wrong = str(error)
            if signum == signal.SIGKILL:
                event.at = start.moment()
            else:
                event.ended = time.monotonic() - began
            if cold:
                shutil.rmtree(cold, ignore_errors=True)
            events.append(event)
        left -= len(events)
        bench.held(subject, folder, events)
    if left:
        names = "/".join(signal.Signals(signum).name for signum in signums)
        bench.skipped.append(f"{left} more of {names} (time was over)")


def _ended_by(start: Start, signum: int) -> str:
    """What is wrong with how it ended."""
    code = start.end()
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
            spoil(_checkpoint_files(_last(folder)), rng)
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
    """No room left from each phase on, on a small file system of its own."""
    disk = SCRATCH / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(disk)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        bench.skipped.append("a full disk: no file system can be mounted here (be root)")
        return
    filler = disk / "filler"
    try:
        subject = SUBJECTS[1]
        for phase in PHASES[:phases]:
            if bench.spent():
                bench.skipped.append(f"a full disk while {phase} (time was over)")
                continue
            rng, seed = bench.rng(f"disk-{phase}")
            folder = bench.folder(disk)
            delay = rng.uniform(0, 0.2) if phase == "compiling" else 0.0
            times = rng.randint(2, 3) if phase in ("training", "validating", "saving") else 1
            start = Start(subject, folder)
            if phase != "starting" and not start.wait_for(Aim(phase, times, delay)):
                raise Fault(f"ended before it was {phase}: {start.said()}")
            start.send(signal.SIGSTOP)
            event = Event("no room on the disk", f"{phase}", subject.name, seed)
            with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
                while file.write(b"\0" * 4096):
                    pass
            start.send(signal.SIGCONT)
            began = time.monotonic()
            code = start.end()
            event.ended = time.monotonic() - began
            if code != 2 or len(start.spoke()) != 1 or "Traceback" in start.said():
                event.wrong = f"ended with {code}: {start.said()}"
            filler.unlink()
            bench.held(subject, folder, [event])
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=False)


def kill_one_of_two(bench: Bench, times: int) -> None:
    """SIGKILL to one of two processes at random moments."""
    for number in range(times):
        if bench.spent():
            bench.skipped.append("one of two processes killed (time was over)")
            return
        rng, seed = bench.rng(f"two-{number}")
        folder = bench.folder()
        starts = _starts(TOGETHER, folder)
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


# --- What is told -------------------------------------------------------------------------


def say(text: str) -> None:
    """Print it now."""
    print(f"{datetime.now(UTC):%H:%M:%S} {text}", flush=True)


def table(bench: Bench, took: float, where: dict[str, Any]) -> str:
    """What happened, in Markdown."""
    groups: dict[tuple[str, str], list[Event]] = {}
    for event in sorted(bench.events, key=lambda e: (_order(e.fault), _order(e.at))):
        groups.setdefault((event.fault, event.at), []).append(event)
    lines = [
        "| fault | while | times | as undisturbed | gone after, s |",
        "| --- | --- | ---: | ---: | ---: |",
    ]
    for (fault, at), events in groups.items():
        good = sum(not event.wrong for event in events)
        times = [event.ended for event in events if event.ended is not None]
        longest = f"{max(times):.1f}" if times else "–"
        lines.append(f"| {fault} | {at} | {len(events)} | {good} | {longest} |")
    good = sum(not event.wrong for event in bench.events)
    lines.append(f"| **all** | | **{len(bench.events)}** | **{good}** | |")
    runs = {(event.seed, event.subject) for event in bench.events}
    machine, versions = where["machine"], where["versions"]
    lines += [
        "",
        f"{datetime.now(UTC):%Y-%m-%d}, commit `{where['git_commit']}`, "
        f"{machine['cpu']}, {machine['cores']} cores, jax {versions['jax']}; seed {bench.seed}, "
        f"{took:,.0f} s in all. {len(runs)} disturbed runs, of: "
        + "; ".join(f"{name} ({seconds:.0f} s)" for name, seconds in bench.seconds.items())
        + ".",
        *(f"\nNot tried: {text}." for text in bench.skipped),
        *(
            f"\nWrong: {e.fault} while {e.at} ({e.subject}, `{e.seed}`): "
            f"{e.wrong.strip().splitlines()[-1][:300]}"
            for e in bench.events
            if e.wrong
        ),
    ]
    return "\n".join(lines)


def _order(text: str) -> tuple[int, str]:
    first = ("SIGKILL", "SIGTERM", "SIGINT", *PHASES[:6], WRITING, *PHASES[6:])
    return (first.index(text) if text in first else len(first), text)


def record(path: Path, text: str) -> None:
    """Put it between the marks of a file."""
    before, _, rest = path.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    path.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}", encoding="utf-8")


def _part(bench: Bench, name: str, do: Callable[..., None], *arguments: Any) -> Bench:
    """Part of the work, in a process of its own, which forks runs and so must not compute."""
    bench = replace(bench, part=name, events=[], skipped=[])
    try:
        do(bench, *arguments)
    except (Fault, KeyError) as error:
        bench.add(Event(name, "prepared", "", "", wrong=str(error)))
    return bench


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=60, help="begin nothing new after these")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--signals", type=int, default=30)
    parser.add_argument("--damages", type=int, default=2, help="of each kind")
    parser.add_argument("--pairs", type=int, default=4, help="kills of one of two processes")
    parser.add_argument("--disks", type=int, default=len(PHASES), help="full, in so many phases")
    parser.add_argument("--one-subject", action="store_true", help="signals to the first alone")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--record", type=Path, help="a file with marks for the table")
    asked = parser.parse_args()
    began = time.monotonic()
    subjects = SUBJECTS[:1] if asked.one_subject else SUBJECTS
    bench = Bench(asked.seed, began + 60 * asked.minutes, subjects)
    where = environment.describe()  # the commit, before anything is written
    mark_phases()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the disk is unmounted
    say(f"in {SCRATCH}, seed {asked.seed}")
    parts = {
        "kills": (send_signals, (signal.SIGKILL,), asked.kills),
        "signals": (send_signals, (signal.SIGTERM, signal.SIGINT), asked.signals),
        "damages": (damage, asked.damages),
        "disks": (fill_disk, asked.disks),
        "pairs": (kill_one_of_two, asked.pairs),
    }
    asked_for = {name: part for name, part in parts.items() if part[-1]}
    needed = [TOGETHER] if "pairs" in asked_for else []
    if {"kills", "signals"} & asked_for.keys():
        needed += bench.subjects
    if {"damages", "disks"} & asked_for.keys() and SUBJECTS[1] not in needed:
        needed.append(SUBJECTS[1])
    try:
        # Workers are forked at the first call, before this process has threads.
        fork = multiprocessing.get_context("fork")
        with warnings.catch_warnings(), ProcessPoolExecutor(asked.jobs, fork) as pool:
            warnings.simplefilter("ignore")
            undisturbed = {f"undisturbed{n}-": (Bench.prepare, s) for n, s in enumerate(needed)}
            for calls in (undisturbed, asked_for):
                futures = [pool.submit(_part, bench, name, *call) for name, call in calls.items()]
                for future in futures:
                    bench.take(future.result())
    finally:
        text = table(bench, time.monotonic() - began, where)
        print(text, flush=True)
    if asked.record:
        record(asked.record, text)
    wrong = sum(bool(event.wrong) for event in bench.events)
    if wrong:
        say(f"{wrong} of {len(bench.events)} went wrong; what they left is in {SCRATCH}")
    else:
        shutil.rmtree(SCRATCH)
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
