"""Talk between the processes of a run, on one machine or on many, each with devices of its own.

One process is the same code as several.

Where one of them is gone, the others cannot go on. JAX finds that out in two ways: the allgather in
progress fails in Python, or JAX's coordination service tells its C++ client, which writes lines of
C++ to standard error and aborts. Either becomes one line and exit code 1 here.
"""

import ctypes
import io
import json
import os
import re
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from cifar_jax import last_words
from cifar_jax.errors import UserError

T = TypeVar("T")

HEARTBEAT_SECONDS = 30
"""Without a sign of life for so long, a process counts as gone."""

LEAVING_SECONDS = 10
"""So long a process that an error stops waits for the others to be stopped by it too."""

_watch: "_Watch | None" = None


def initialize_distributed() -> None:
    """Make this one of the processes of a run. Call it before anything else uses a device.

    Where they are is taken from JAX_COORDINATOR_ADDRESS (host:port of the first process),
    JAX_NUM_PROCESSES and JAX_PROCESS_ID, or from what SLURM, Open MPI, Kubernetes or a TPU slice
    tell their processes (see `jax.distributed.initialize`).

    Raises:
      UserError: none of these says where the processes are, or they cannot be reached.
    """

    def number(name: str) -> int | None:
        text = os.environ.get(name)
        if text is not None and not text.isdecimal():
            raise UserError(f"{name}={text!r} is not a whole number")
        return None if text is None else int(text)

    count, index = number("JAX_NUM_PROCESSES"), number("JAX_PROCESS_ID")
    global _watch
    _watch = _Watch()
    try:
        jax.distributed.initialize(
            num_processes=count, process_id=index, heartbeat_timeout_seconds=HEARTBEAT_SECONDS
        )
    except (ValueError, RuntimeError) as error:
        _watch.hush()
        _watch.close()
        _watch = None
        raise UserError(
            f"the processes of the run cannot find each other ({str(error).splitlines()[0]}): set "
            "JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, or start them by srun"
        ) from None
    _watch.met = True


def is_main_process() -> bool:
    """Whether this process is the one that speaks and writes for all."""
    return jax.process_index() == 0


def is_single_process() -> bool:
    """Whether this process is the only one of the run."""
    return jax.process_count() == 1


def allgather(value: Any) -> list[Any]:
    """The `value` of every process, in their order: whatever JSON can hold. All must call it."""
    if is_single_process():
        return [value]
    own = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = _gather(np.int32(own.size))
    padded = np.pad(own, (0, sizes.max() - own.size))
    rows = _gather(padded)
    return [json.loads(bytes(row[:size])) for row, size in zip(rows, sizes, strict=True)]


def all_max(*values: float) -> list[float]:
    """Of each of the `values` the all_max that any process has. All must call it."""
    if is_single_process():
        return list(values)
    rows = _gather(np.asarray(values, np.float32))
    return [float(value) for value in rows.max(0)]


def _lines(pipe: io.FileIO) -> Iterator[bytes]:
    """What comes through `pipe`, read only where the process outlives what it wrote last."""
    rest = b""
    while True:
        select.select([pipe], [], [])
        time.sleep(0.02)
        if not (some := os.read(pipe.fileno(), 1 << 16)):
            break
        *lines, rest = (rest + some).split(b"\n")
        yield from (line + b"\n" for line in lines)
    if rest:
        yield rest


def _gather(array: Any) -> np.ndarray:
    """The `array` of every process."""
    try:
        return np.asarray(multihost_utils.process_allgather(array))
    except (ValueError, RuntimeError) as error:  # whatever carries it says it in its own way
        raise UserError(
            f"another process of the run cannot be reached ({str(error).splitlines()[0]}): "
            "start all of them again; the run goes on from its last checkpoint"
        ) from error


def run_on_all(function: Callable[[], T]) -> T:
    """Call `function` in every process; what stops one stops all: a `UserError`, or the system,
    whose `OSError` is the others' `UserError`."""
    result, failure = None, None
    try:
        result = function()
    except (UserError, OSError) as error:
        failure = error
    told = allgather(None if failure is None else str(failure))
    if isinstance(failure, OSError):
        raise failure
    for index, text in enumerate(told):
        if text is not None:
            raise UserError(f"process {index}: {text}" if not is_single_process() else text)
    return result  # pyright: ignore[reportReturnType]


def run_on_main(function: Callable[[], T]) -> T:
    """Call `function` in the first process alone, for all: JSON must be able to hold the result."""
    return allgather(run_on_all(lambda: function() if is_main_process() else None))[0]


def broadcast_arrays(tree: Any) -> Any:
    """A tree of NumPy arrays, those of the first process in every one. All must call it."""
    if is_single_process():
        return tree
    return jax.tree.map(lambda array: _gather(array)[0], tree)


@contextmanager
def together() -> Iterator[None]:
    """While inside, an error that comes of another process's end ends this one: in one line.

    Put it around what all processes do together, inside whatever waits for them when it is left.
    """
    try:
        yield
    except Exception as error:
        end_if_alone(error)
        raise


def end_if_alone(error: BaseException) -> None:
    """End this process where `error` comes of another one's end; else return."""
    cause: BaseException | None = error
    while _watch and cause:
        if isinstance(cause, (jax.errors.JaxRuntimeError, ValueError)) and _OF_ANOTHER.search(
            str(cause)
        ):
            _watch.end(str(cause))
        cause = cause.__cause__ or cause.__context__


def leave(code: int) -> None:
    """Leave the other processes, if this is one of several; call it last.

    At the end of the work (`code` 0) it waits for the others to be there too. After an error it
    gives them a few seconds to come to the same, and exits: one that does not come is at work still
    and waits for this one, or is gone itself.
    """
    if not _watch:
        return
    if code:
        _watch.hush()
        last = threading.Timer(LEAVING_SECONDS, os._exit, [code])
        last.daemon = True
        last.start()
    try:
        jax.distributed.shutdown()
    except jax.errors.JaxRuntimeError as error:
        if not code:
            _watch.end(str(error))
    _watch.close()
    if code:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)


_OF_ANOTHER = re.compile(
    "gloo|nccl|peer|coordination|heartbeat|barrier|unavailable|deadline_exceeded|timed out", re.I
)
# A message of C++ begins so, and those of these files tell what the one line says.
_BEGIN = re.compile(rb"[IWEF]\d{4} \d\d:\d\d:\d\d")
_SERVICE = re.compile(rb" (coordination_\w+|preemption_sync_manager|client|add_port)\.(cc|h):")


class _Watch:
    """Stands between what C++ writes to standard error and whoever reads it, to end this process
    in good order when JAX's client says that another one is gone, and is about to abort.

    JAX has a callback for this (`missed_heartbeat_callback`), which aborts too: it is given a
    C++ object that Python has no type for. Python's own standard error takes no detour.

    The client of JAX 0.7 does not abort but exits, with code 1, and leaves no thread the time to
    read what it wrote. A process of its own, the heir, waits for that: `last_words`.
    """

    def __init__(self) -> None:
        self._once = threading.Lock()
        self._hushed = False
        self.met = False
        """Whether the processes found each other."""
        self._real = os.dup(2)
        reading, writing = os.pipe()
        os.dup2(writing, 2)
        os.close(writing)
        self._stderr = sys.stderr
        sys.stderr = open(  # noqa: SIM115
            self._real, "w", buffering=1, encoding="utf-8", errors="replace", closefd=False
        )
        self._on_abort(sleep=True)
        waiting, self._alive = os.pipe()
        words = [last_words.__file__, str(reading), self._said(last_words.WHY, met=True)]
        self._heir = subprocess.Popen(
            [sys.executable, "-I", "-S", *words],
            stdin=waiting,
            stdout=subprocess.DEVNULL,
            stderr=self._real,
            pass_fds=[reading],
            start_new_session=True,
        )
        os.close(waiting)
        self._thread = threading.Thread(target=self._forward, args=(reading,), daemon=True)
        self._thread.start()

    def hush(self) -> None:
        """Say nothing of processes that are gone from now on: this one is about to go, too."""
        self._hushed = True
        self._heir.kill()

    def close(self) -> None:
        """Give standard error back, with all that was written to it."""
        self._heir.kill()
        self._heir.wait()
        os.close(self._alive)
        os.dup2(self._real, 2)
        self._thread.join(timeout=2)
        sys.stderr = self._stderr
        if not self._once.locked():
            self._on_abort(sleep=False)

    def end(self, why: str) -> None:
        """Say that another process is gone, and be gone."""
        if not self._once.acquire(blocking=False):
            threading.Event().wait()  # another thread is at it
        if os.isatty(1):
            os.write(1, b"\x1b[?25h\n")  # a progress bar hides the cursor
        said = self._said(last_words.shortened(why), met=self.met)
        with suppress(OSError):
            os.write(self._real, f"{said}\n".encode())
        self._heir.kill()
        os._exit(1 if self.met else 2)

    @staticmethod
    def _said(why: str, *, met: bool) -> str:
        if met:
            return (
                f"cifar-jax: another process of the run is gone ({why}): see what it said last, "
                "and start all of them again; they go on from the last checkpoint"
            )
        return (
            f"cifar-jax: the other processes of the run did not come ({why}): start all of them "
            "within five minutes, with a JAX_COORDINATOR_ADDRESS that each can reach"
        )

    def _forward(self, reading: int) -> None:
        held, holding = [], False
        with open(reading, "rb", buffering=0) as pipe:
            for line in _lines(pipe):
                if _BEGIN.match(line):
                    holding = bool(_SERVICE.search(line))
                why = last_words.fatal_cause(line)
                if why is not None and not self._hushed:
                    self.end(why)
                if holding:
                    held.append(line)
                else:
                    os.write(self._real, line)
        if not self._once.locked() and not self._hushed:
            os.write(self._real, b"".join(held))

    @staticmethod
    def _on_abort(*, sleep: bool) -> None:
        """Have the thread that aborts sleep for so many seconds as SIGABRT's number: six.

        Nothing more may be done there, and it is enough for another thread to end the process.
        """
        libc = ctypes.CDLL(None)
        libc.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
        libc.signal.restype = ctypes.c_void_p
        libc.signal(signal.SIGABRT, ctypes.cast(libc.sleep, ctypes.c_void_p) if sleep else None)
