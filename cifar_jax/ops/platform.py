"""Select the implementation of an operation for the platform that the program runs on."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import jax

_forced: ContextVar[str | None] = ContextVar("forced_platform", default=None)


@contextmanager
def force_platform(platform: str = "default") -> Iterator[None]:
    """Trace operations with the implementation for `platform`, on any machine.

    The default implementation uses XLA's own operations. The default implementation runs on every
    platform and accepts a symbolic batch size (`jax.export.symbolic_shape`), so exports use it.

    The context affects only the current thread and the functions that are traced inside the
    context. A `jax.jit` function that was traced earlier keeps its program.

    Args:
      platform: `cpu`, `cpu-onednn`, `cuda`, `tpu` or `default`. `cpu-onednn` is for programs that
        run on one CPU device and are compiled with oneDNN. An operation without an implementation
        for `cpu-onednn` uses the implementation for `cpu`. An operation without an implementation
        for another platform uses the default.
    """
    token = _forced.set(platform)
    try:
        yield
    finally:
        _forced.reset(token)


def forced_platform() -> str | None:
    """Return the platform that `force_platform` has set, or None outside of its context.

    An operation calls this function once, on entry, and passes the result on as a static argument.
    The inner `jax.jit` of the operation is then traced separately for each platform. The gradient
    of the operation uses the same platform, even if it is traced after the context has ended.
    """
    return _forced.get()


def dispatch(platform: str | None, *operands: Any, **implementations: Callable[..., Any]) -> Any:
    """Apply the implementation for `platform` to the operands.

    Args:
      platform: the result of `forced_platform`. If None, JAX chooses the implementation when it
        lowers the program (`jax.lax.platform_dependent`).
      *operands: arrays or trees of arrays.
      **implementations: for each platform, a function of the operands. `default` is required.
    """
    if platform is None:
        known = {name: f for name, f in implementations.items() if name != "cpu-onednn"}
        return jax.lax.platform_dependent(*operands, **known)
    if platform == "cpu-onednn" and platform not in implementations:
        platform = "cpu"
    return implementations.get(platform, implementations["default"])(*operands)
