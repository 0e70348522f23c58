"""Start and watch the runs that `make torture` disturbs.

Each process of a run executes the command `cifar-jax train`. It is a fork of the current process,
because imports take most of the time of a short run. The current process must not use JAX for a
computation, because JAX does not work in a fork after its first computation.
"""

import functools
import multiprocessing
import os
import random
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

import cifar_jax.cli.train
import cifar_jax.data.digits  # noqa: F401 - The forked runs need not import it again.
from cifar_jax import cli
from cifar_jax.callbacks.metrics_file import MetricsFile
from cifar_jax.runs.checkpoints import Checkpoints
from cifar_jax.runs.folder import RunFolder
from cifar_jax.training import train as training
from cifar_jax.training.compilation import CompiledSteps
from tools.torture import CACHE, SCRATCH

PATIENCE = 600
"""Seconds after which a process counts as hanging."""

STARTING = "starting"
"""Name of the phase outside of all other phases."""

_FUNCTIONS = (
    (training, "build_setup", "loading data"),
    (Checkpoints, "restore_latest", "restoring"),
    (CompiledSteps, "__init__", "compiling"),
    (training, "compile_evaluation", "compiling"),
    (training, "train_epoch", "training"),
    (training, "epoch_metrics", "validating"),
    (MetricsFile, "on_epoch_end", "writing metrics"),
    (Checkpoints, "save", "saving"),
    (training, "write_result", "testing"),
    (RunFolder, "write_result", "writing the result"),
)
"""Functions whose call begins a phase: (module or class, function, phase). Phases may nest."""

PHASES = (STARTING, *dict.fromkeys(phase for _, _, phase in _FUNCTIONS))

BACKGROUND = "writing a checkpoint"
"""Name of the phase in which Orbax writes a checkpoint in the background."""

_fork = multiprocessing.get_context("fork")
_progress: Any = None
"""Integers that a run shares with its parent process.

They are the index of the current phase, and how often the run has entered each phase.
"""


class Failure(Exception):
    """Raised if a run behaves wrongly."""


class RunKind(NamedTuple):
    """A training run of a few seconds."""

    name: str
    arguments: tuple[str, ...]
    """Arguments of `cifar-jax`, without `--workdir`."""
    processes: int


def _kind(name: str, experiment: str, settings: str, processes: int = 1) -> RunKind:
    settings = f"data.dataset=digits train.log_every=4 {settings}"
    words = [word for setting in settings.split() for word in ("--set", setting)]
    return RunKind(name, ("train", experiment, *words), processes)


_PLATEAU = "schedule.name=plateau schedule.patience=0 schedule.threshold=0.9"
BASIC = _kind(  # saves a checkpoint every 0.3 s
    "basic",
    "basic",
    "epochs=4 batch_size=16 data.train_images=512 data.validation=144 data.crop_padding=4 "
    "data.flip=true train.checkpoint_minutes=0.005 train.devices=1 train.eval_batch_size=16",
)
ADAM = _kind(
    "basic, Adam, plateau",
    "basic",
    "epochs=5 batch_size=16 data.train_images=200 data.validation=0.1 data.last_batch=wrap "
    "data.crop_padding=2 optimizer.name=adam train.keep_checkpoints=1 train.steps_per_call=2 "
    f"train.devices=1 {_PLATEAU}",
)
NET = _kind(  # has BatchNorm and dropout
    "net-bn-gap, plateau",
    "net-bn-gap",
    "epochs=4 batch_size=8 data.train_images=40 data.validation=24 data.crop_padding=4 "
    f"data.flip=true train.checkpoint_minutes=0.01 train.devices=1 {_PLATEAU}",
)
TWO_PROCESSES = _kind(
    "basic, two processes",
    "basic",
    "epochs=4 batch_size=16 data.train_images=256 data.validation=144 "
    f"train.checkpoint_minutes=0.01 {_PLATEAU}",
    processes=2,
)


class Moment(NamedTuple):
    """A moment of a run: `delay` seconds after it enters `phase` for the `number`-th time."""

    phase: str
    number: int
    delay: float

    @classmethod
    def draw(cls, rng: random.Random, seconds: float) -> "Moment":
        """Return a random moment of a run that takes `seconds`.

        Most moments are shortly after the start of a phase.
        """
        phase = rng.choice([STARTING, STARTING, *PHASES[1:], "training", BACKGROUND])
        if phase == STARTING:
            return cls(phase, 0, rng.uniform(0, seconds))
        numbers = {"training": 3, "validating": 2, "writing metrics": 3, "saving": 3, BACKGROUND: 3}
        delays = {"compiling": 1.0, "training": 0.5, "loading data": 0.2}
        number = rng.randint(1, numbers.get(phase, 1))
        return cls(phase, number, rng.uniform(0, delays.get(phase, 0.03)))


class RunProcess:
    """A process that trains a run. The constructor starts the process.

    Args:
      kind: the run.
      folder: the run folder.
      cache: folder for compiled programs.
      environment: environment variables to add.
    """

    def __init__(
        self, kind: RunKind, folder: Path, cache: Path, environment: Mapping[str, str]
    ) -> None:
        self._checkpoints = folder / "checkpoints"
        rank = environment.get("JAX_PROCESS_ID", "0")
        self._printed = SCRATCH / f"{folder.name}.{time.monotonic_ns()}.{rank}.out"
        self._printed.touch()
        self._progress = _fork.RawArray("i", 1 + len(PHASES))
        words = [*kind.arguments, "--workdir", str(folder)]
        self._process = _fork.Process(
            target=_train, args=(words, self._printed, cache, environment, self._progress)
        )
        self._process.start()

    def is_running(self) -> bool:
        """Return whether the process has not ended yet."""
        return self._process.exitcode is None

    def phase(self) -> str:
        """Return what the process is doing, or was doing when it ended."""
        phase = PHASES[self._progress[0]]
        return BACKGROUND if phase != "saving" and self._is_writing() else phase

    def wait_for(self, moment: Moment) -> bool:
        """Wait until a moment. Return False if the process ends before the moment."""
        in_background = moment.phase == BACKGROUND
        place = 1 + PHASES.index("saving" if in_background else moment.phase)
        while self.is_running():
            is_reached = self._progress[place] >= moment.number
            if is_reached and (not in_background or self._is_writing()):
                self._process.join(moment.delay)
                return self.is_running()
            time.sleep(0.001)
        return False

    def send(self, signum: int) -> None:
        """Send a signal to the process."""
        os.kill(self._process.pid or 0, signum)

    def wait(self) -> int:
        """Wait for the end of the process and return its exit code.

        Raises:
          Failure: the process does not end.
        """
        self._process.join(PATIENCE)
        if self.is_running():
            self._process.kill()
            self._process.join()
            raise Failure(f"did not end within {PATIENCE} s: {self.output()}")
        return self._process.exitcode or 0

    def output(self) -> str:
        """Return the last 1,500 characters that the process printed."""
        return self._printed.read_text(errors="replace")[-1500:]

    def printed_one_line(self) -> bool:
        """Return whether the process printed one error line and no traceback."""
        lines = self._printed.read_text(errors="replace").splitlines()
        errors = [line for line in lines if line.startswith("cifar-jax: ")]
        errors = [line for line in errors if "waiting for 2 processes" not in line]
        return len(errors) == 1 and not any("Traceback" in line for line in lines)

    def _is_writing(self) -> bool:
        return any(self._checkpoints.glob("*.orbax-checkpoint-tmp*"))


def start(kind: RunKind, folder: Path, cache: Path = CACHE) -> list[RunProcess]:
    """Start all processes of a run."""
    if kind.processes == 1:
        return [RunProcess(kind, folder, cache, {})]
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"localhost:{probe.getsockname()[1]}"
    common = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(kind.processes)}
    environments = [{**common, "JAX_PROCESS_ID": str(rank)} for rank in range(kind.processes)]
    return [RunProcess(kind, folder, cache, environment) for environment in environments]


def mark_phases() -> None:
    """Change the functions of each phase so that forked runs report their phase."""
    for owner, name, phase in _FUNCTIONS:
        setattr(owner, name, _marked(getattr(owner, name), PHASES.index(phase)))


def _marked(function: Callable[..., Any], number: int) -> Callable[..., Any]:
    @functools.wraps(function)
    def marked(*arguments: Any, **keywords: Any) -> Any:
        outer = _progress[0]
        _progress[0] = number
        _progress[1 + number] += 1
        try:
            return function(*arguments, **keywords)
        finally:
            _progress[0] = outer

    return marked


def _train(
    words: Sequence[str], printed: Path, cache: Path, environment: Mapping[str, str], progress: Any
) -> None:
    """Run the command `cifar-jax` with the arguments `words` in a forked process."""
    global _progress
    _progress = progress
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with printed.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ |= environment
    jax.config.update("jax_compilation_cache_dir", str(cache))
    sys.argv = ["cifar-jax", *words]
    cli.main()
