"""Which form of an operation is traced: the one for the platform it will run on, or a named one."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import jax

_named: ContextVar[str | None] = ContextVar("platform", default=None)


@contextmanager
def plain(platform: str = "default") -> Iterator[None]:
    """Within, operations are traced in their form for `platform`, whatever the machine.

    The default form is XLA's own operation, which runs everywhere, for any batch size: this is
    how to export a network (`jax.export.symbolic_shape`), and how a CPU runs what accelerators get.
    It holds for the thread that enters it, and for tracing: what a `jax.jit` of yours has traced
    before, outside, stays as it was.
    """
    token = _named.set(platform)
    try:
        yield
    finally:
        _named.reset(token)


def named() -> str | None:
    """The platform that `plain` names here; None outside of it.

    Operations ask once, at their entry, and hand the answer on as a static argument: their own jit
    remembers what it traced by its arguments, and a gradient may be traced after `plain` has ended.
    """
    return _named.get()


def choose(platform: str | None, *operands: Any, **forms: Callable[..., Any]) -> Any:
    """`jax.lax.platform_dependent`, or of a named platform its form, else the default one."""
    if platform is None:
        return jax.lax.platform_dependent(*operands, **forms)
    return forms.get(platform, forms["default"])(*operands)
