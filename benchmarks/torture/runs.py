"""The runs, and a process of one: forked from this one, which has imported everything and computed
nothing, since importing is most of the cost of a start. It reports what it is doing in a few shared
bytes, so that a fault can be aimed and its moment told.
"""

import contextlib
import functools
import mmap
import multiprocessing
import os
import random
import signal
import socket
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from benchmarks.torture import SCRATCH
from cifar_jax import catalog, cli, config, distributed  # noqa: F401
from cifar_jax.data import digits  # noqa: F401
from cifar_jax.runs.checkpoints import Checkpoints
from cifar_jax.runs.folder import Workdir
from cifar_jax.training import fit, loop, setup

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
PATIENCE = 600  # seconds for what takes some; more is a hang

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
        (setup, "workload", "loading data"),
        (Checkpoints, "restore_newest", "restoring"),
        (loop.Trainer, "_train_epoch", "training"),
        (Checkpoints, "save", "saving"),
        (fit, "measure_result", "testing"),
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
    cli.hide_background_errors()
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


def launch(subject: Subject, folder: Path, cache: Path | None = None) -> list[Start]:
    """The processes of a run: one, but for `TOGETHER`."""
    if subject.name != TOGETHER.name:
        return [Start(subject, folder, cache)]
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    several = {"JAX_COORDINATOR_ADDRESS": f"localhost:{port}", "JAX_NUM_PROCESSES": "2"}
    return [Start(subject, folder, None, JAX_PROCESS_ID=str(rank), **several) for rank in range(2)]


class Aim(NamedTuple):
    """So many seconds after a phase was entered for so many times."""

    phase: str
    time: int
    delay: float

    @classmethod
    def drawn(cls, rng: random.Random, seconds: float) -> "Aim":
        """Any moment of a run of so many seconds, or one within a phase."""
        phase = rng.choice(["", "", *PHASES[1:], "training", WRITING])
        if phase in ("", "restoring"):
            return cls("", 1, rng.uniform(0, seconds))
        times = {"training": 3, "validating": 2, "saving": 3, WRITING: 3}.get(phase, 1)
        longest = {"compiling": 1.0, "training": 0.5, "loading data": 0.2}.get(phase, 0.03)
        return cls(phase, rng.randint(1, times), rng.uniform(0, longest))
