"""Learning rate schedules: functions from a step to a factor of the highest learning rate.

The numbers in a `StepInfo` may be traced, so neither another learning rate nor another length of
the run compiles anything again.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from cifar_jax.config import Schedule


class StepInfo(NamedTuple):
    """The place of a step in the run; int32 scalars."""

    step: Any
    """Steps before this one."""
    epoch: Any
    """Epochs completed before this one."""
    total_steps: Any
    """Steps in the whole run."""


ScheduleFn = Callable[[StepInfo], jax.Array]
"""Returns a float32 factor of the highest learning rate."""

ONE_CYCLE_START, ONE_CYCLE_END = 1 / 25, 1 / 25e4
"""First and last factor of `one-cycle`: PyTorch's `div_factor` and `final_div_factor`."""


def make(schedule: Schedule, custom: Callable[..., Any] | None = None) -> ScheduleFn:
    """Return the schedule that the settings name.

    `plateau` is constant here: its reductions are in the train state.

    Args:
      schedule: the settings.
      custom: the experiment file's `SCHEDULE`, called with a `StepInfo` and
        `schedule.arguments`.
    """
    match schedule.name:
        case "custom":
            assert custom is not None
            function = partial(custom, **schedule.arguments)
            return lambda info: jnp.asarray(function(info), jnp.float32)
        case "constant" | "plateau":
            return lambda info: jnp.float32(1)
        case "step":
            # Whole epochs: a quotient in floating point could be one step late at the boundary.
            period, factor = schedule.step_epochs, schedule.factor
            return lambda info: factor ** jnp.floor_divide(info.epoch, period).astype(float)
        case "cosine":
            return lambda info: _cosine(1, 0, _progress(0, info.step, info.total_steps))
        case "one-cycle":
            return lambda info: _one_cycle(schedule.warmup, info)
        case "linear":
            return lambda info: _line(1, schedule.end, _progress(0, info.step, info.total_steps))
        case "triangular":
            return lambda info: _triangular(schedule, info)


class PlateauState(NamedTuple):
    """State of the plateau rule. The values are arrays, so a reduction never recompiles."""

    scale: jax.Array
    """float32: factor of the learning rate."""
    best: jax.Array
    """float32: lowest loss so far."""
    bad_epochs: jax.Array
    """int32: epochs since the lowest loss or the last reduction."""


def plateau_init() -> PlateauState:
    """Return the state before the first epoch."""
    return PlateauState(jnp.float32(1), jnp.float32(jnp.inf), jnp.int32(0))


def plateau_update(
    state: PlateauState,
    loss: jax.Array,
    *,
    lr: float | jax.Array,
    patience: int,
    factor: float,
    threshold: float,
    eps: float = 1e-8,
) -> PlateauState:
    """Return the state after an epoch, as PyTorch's `ReduceLROnPlateau(mode="min")` does.

    A loss below `best * (1 - threshold)` is an improvement. After more than `patience` epochs
    without one, the scale is multiplied by `factor`, unless that changes the learning rate
    `lr * scale` by no more than `eps`. NaN is never an improvement. optax's `reduce_on_plateau`
    reduces one epoch earlier.
    """
    improved = loss < state.best * (1 - threshold)
    bad_epochs = jnp.where(improved, 0, state.bad_epochs + 1)
    reduce = bad_epochs > patience
    reduced = state.scale * factor
    matters = lr * (state.scale - reduced) > eps
    return PlateauState(
        scale=jnp.where(reduce & matters, reduced, state.scale),
        best=jnp.where(improved, loss, state.best).astype(jnp.float32),
        bad_epochs=jnp.where(reduce, 0, bad_epochs).astype(jnp.int32),
    )


def _one_cycle(warmup: float, info: StepInfo) -> jax.Array:
    top = _top(warmup, info)
    rising = _cosine(ONE_CYCLE_START, 1, _progress(0, info.step, top))
    falling = _cosine(1, ONE_CYCLE_END, _progress(top, info.step, info.total_steps))
    return jnp.where(info.step < top, rising, falling)


def _triangular(schedule: Schedule, info: StepInfo) -> jax.Array:
    top = _top(schedule.warmup, info)
    rising = _line(schedule.start, 1, _progress(0, info.step, top))
    falling = _line(1, schedule.end, _progress(top, info.step, info.total_steps))
    return jnp.where(info.step < top, rising, falling)


def _top(warmup: float, info: StepInfo) -> jax.Array:
    """Return the step with the highest rate."""
    # The small addend keeps products such as 0.7 * 10 from rounding to below 7.
    return jnp.floor(jnp.float32(warmup) * info.total_steps + 1e-3)


def _progress(begin: Any, step: Any, end: Any) -> jax.Array:
    """Return how far the step is from `begin` to `end`, in 0..1."""
    length = jnp.maximum(jnp.asarray(end - begin, jnp.float32), 1)
    return jnp.clip((step - begin) / length, 0, 1)


def _line(start: float, end: float, progress: jax.Array) -> jax.Array:
    return start + (end - start) * progress


def _cosine(start: float, end: float, progress: jax.Array) -> jax.Array:
    """Return the value of a half cosine wave from `start` to `end`."""
    return end + (start - end) * (1 + jnp.cos(jnp.pi * progress)) / 2
