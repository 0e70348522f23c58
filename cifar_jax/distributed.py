"""Communication between the processes of a multi-process run.

Functions that communicate must be called by all processes, in the same order. In a single-process
run they do not communicate.
"""

import json
import os
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from cifar_jax.errors import UserError

T = TypeVar("T")

HEARTBEAT_SECONDS = 30
"""If a process sends no heartbeat for this many seconds, JAX ends all other processes."""

SHUTDOWN_SECONDS = 10
"""Largest number of seconds that a failed process waits for the other processes before it exits."""


def initialize() -> None:
    """Join a multi-process run. Call this before JAX uses a device.

    The run is configured by JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, or by
    the environment variables of SLURM, Open MPI, Kubernetes or a TPU slice.

    Raises:
      UserError: the processes are not configured, or they cannot connect.
    """
    count, index = os.environ.get("JAX_NUM_PROCESSES"), os.environ.get("JAX_PROCESS_ID")
    partners = f"{count} processes" if count else "the other processes"
    address = os.environ.get("JAX_COORDINATOR_ADDRESS")
    place = f" at {address}" if address else ""
    print(f"cifar-jax: waiting for {partners}{place}", file=sys.stderr, flush=True)
    try:
        jax.distributed.initialize(
            num_processes=int(count) if count else None,
            process_id=int(index) if index else None,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        )
    except (ValueError, RuntimeError) as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise UserError(
            f"the processes cannot connect ({reason}). Set JAX_COORDINATOR_ADDRESS, "
            "JAX_NUM_PROCESSES and JAX_PROCESS_ID, or start the processes with srun."
        ) from None


def shutdown(exit_code: int) -> None:
    """Leave a multi-process run after all processes are done. Call this last.

    If `exit_code` is not 0, this process waits at most `SHUTDOWN_SECONDS` for the other processes
    and then exits. JAX then ends the other processes.
    """
    if not jax.distributed.is_initialized():
        return
    if exit_code:
        timer = threading.Timer(SHUTDOWN_SECONDS, os._exit, [exit_code])
        timer.daemon = True
        timer.start()
    with suppress(jax.errors.JaxRuntimeError):
        jax.distributed.shutdown()


def is_main_process() -> bool:
    """Return whether this is process 0, which writes logs, metrics and results."""
    return jax.process_index() == 0


def is_single_process() -> bool:
    """Return whether the run has only one process."""
    return jax.process_count() == 1


def allgather(value: Any) -> list[Any]:
    """Return a list of the `value` of every process, in order of process index.

    The values must be JSON-compatible.
    """
    if is_single_process():
        return [value]
    encoded = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = _gather(np.int32(encoded.size))
    rows = _gather(np.pad(encoded, (0, sizes.max() - encoded.size)))
    return [json.loads(bytes(row[:size])) for row, size in zip(rows, sizes, strict=True)]


def all_max(*values: float) -> list[float]:
    """Return the maximum of each value over all processes, in the order of the arguments."""
    if is_single_process():
        return list(values)
    return _gather(np.asarray(values, np.float32)).max(axis=0).tolist()


def broadcast_arrays(tree: Any) -> Any:
    """Copy a tree of NumPy arrays from process 0 to every process, and return the copy."""
    if is_single_process():
        return tree
    return jax.tree.map(lambda array: _gather(array)[0], tree)


def run_on_all(function: Callable[[], T]) -> T:
    """Call `function` in every process. If it fails in one process, all processes raise an error.

    Raises:
      UserError: `function` raised a UserError in this process, or failed in another process.
      OSError: `function` raised an OSError in this process.
    """
    result, failure = None, None
    try:
        result = function()
    except (UserError, OSError) as error:
        failure = error
    messages = allgather(None if failure is None else str(failure))
    if failure is not None:
        raise failure
    for index, message in enumerate(messages):
        if message is not None:
            raise UserError(f"process {index}: {message}")
    return result  # pyright: ignore[reportReturnType]


def run_on_main(function: Callable[[], T]) -> T:
    """Call `function` in process 0 and return its JSON-compatible result in every process."""
    return allgather(run_on_all(lambda: function() if is_main_process() else None))[0]


def require_equal(value: Mapping[str, Any], what: str) -> None:
    """Raise if the processes have different values.

    Args:
      value: JSON-compatible values by name.
      what: name of the values in the error message, such as "settings".

    Raises:
      UserError: the values differ. The message shows the first value that differs.
    """
    first, *others = allgather(dict(value))
    for index, other in enumerate(others, start=1):
        for key in first | other:
            if first.get(key) != other.get(key):
                raise UserError(
                    f"the processes have different {what}: {key} is {first.get(key)!r} in process "
                    f"0 and {other.get(key)!r} in process {index}. Start all processes with the "
                    "same command and the same code."
                )


def _gather(array: Any) -> np.ndarray:
    """Return the array of every process, stacked along a new first axis."""
    return np.asarray(multihost_utils.process_allgather(array))
