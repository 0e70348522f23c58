"""Talk between the processes of a run, on one machine or on many, each with devices of its own.

One process is the same code as several.
"""

import json
import os
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from cifar_jax.errors import UserError

T = TypeVar("T")


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
    try:
        jax.distributed.initialize(num_processes=count, process_id=index)
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"the processes of the run cannot find each other ({str(error).splitlines()[0]}): set "
            "JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, or start them by srun"
        ) from None


def is_first() -> bool:
    """Whether this process is the one that speaks and writes for all."""
    return jax.process_index() == 0


def exchange(value: Any) -> list[Any]:
    """The `value` of every process, in their order: whatever JSON can hold. All must call it."""
    if jax.process_count() == 1:
        return [value]
    own = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = np.asarray(multihost_utils.process_allgather(np.int32(own.size)))
    padded = np.pad(own, (0, sizes.max() - own.size))
    rows = np.asarray(multihost_utils.process_allgather(padded))
    return [json.loads(bytes(row[:size])) for row, size in zip(rows, sizes, strict=True)]


def greatest(*values: float) -> list[float]:
    """Of each of the `values` the greatest that any process has. All must call it."""
    if jax.process_count() == 1:
        return list(values)
    rows = multihost_utils.process_allgather(np.asarray(values, np.float32))
    return [float(value) for value in np.asarray(rows).max(0)]


def from_all(function: Callable[[], T]) -> T:
    """Call `function` in every process; what a `UserError` stops one at stops all."""
    result, message = None, None
    try:
        result = function()
    except UserError as error:
        message = str(error)
    for index, text in enumerate(exchange(message)):
        if text is not None:
            raise UserError(f"process {index}: {text}" if jax.process_count() > 1 else text)
    return result  # pyright: ignore[reportReturnType]


def from_first(function: Callable[[], T]) -> T:
    """Call `function` in the first process alone, for all: JSON must be able to hold the result."""
    return exchange(from_all(lambda: function() if is_first() else None))[0]
