"""Selects the implementation of an operation for the platform that the program runs on."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import jax

_forced: ContextVar[str | None] = ContextVar("forced_platform", default=None)


@contextmanager
def force_platform(platform: str = "default") -> Iterator[None]:
    """Trace operations in their implementation for `platform`, whatever the machine is.

    The default implementation uses XLA's own operations. It runs on every platform and accepts a
    symbolic batch size (`jax.export.symbolic_shape`), so networks are exported with it.

    The context affects the current thread only, and only what is traced inside it: a `jax.jit`
    function that was traced before keeps its program.

    Args:
      platform: `cpu`, `cuda`, `tpu` or `default`. A platform for which an operation has no
        implementation of its own gets the default one.
    """
    token = _forced.set(platform)
    try:
        yield
    finally:
        _forced.reset(token)


def forced_platform() -> str | None:
    """Return the platform that `force_platform` has set, or None outside of that context.

    An operation calls this once, on entry, and passes the result on as a static argument. Its
    inner `jax.jit` then traces each platform separately, and its gradient uses the same platform
    even if it is traced after the context has ended.
    """
    return _forced.get()


def dispatch(platform: str | None, *operands: Any, **implementations: Callable[..., Any]) -> Any:
    """Apply the implementation for `platform` to the operands.

    Args:
      platform: the result of `forced_platform`. None leaves the choice to the moment when the
        program is lowered (`jax.lax.platform_dependent`).
      *operands: arrays or trees of arrays.
      **implementations: functions of the operands by platform. `default` is required.
    """
    if platform is None:
        return jax.lax.platform_dependent(*operands, **implementations)
    return implementations.get(platform, implementations["default"])(*operands)
