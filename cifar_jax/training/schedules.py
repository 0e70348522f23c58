"""Learning rate schedules: functions from a step to a factor of the base learning rate.

The numbers in a `StepInfo` may be traced arrays. A new learning rate or a new number of steps
therefore does not recompile the train step.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cifar_jax.config import Schedule


class StepInfo(NamedTuple):
    """The position of a step in the run. All fields are int32 scalars."""

    step: Any
    """Number of training steps completed before this step."""
    epoch: Any
    """Number of epochs completed before this step."""
    total_steps: Any
    """Number of training steps in the whole run."""


ScheduleFn = Callable[[StepInfo], jax.Array]
"""Function from the position of a step to a float32 factor of the base learning rate."""

ONE_CYCLE_START, ONE_CYCLE_END = 1 / 25, 1 / 25e4
"""First and last factor of the schedule `one-cycle`. They follow from PyTorch's default values of
`div_factor` and `final_div_factor`."""


def make(schedule: Schedule, custom: Callable[..., Any] | None = None) -> ScheduleFn:
    """Return the schedule function for the settings of a schedule.

    The function for `plateau` always returns 1. The train state holds the factor of `plateau`.

    Args:
      schedule: settings of the schedule.
      custom: the function `SCHEDULE` of the experiment file. It is called with a `StepInfo` and
        with the setting `arguments`.
    """
    match schedule.name:
        case "custom":
            assert custom is not None
            function = partial(custom, **schedule.arguments)
            return lambda info: jnp.asarray(function(info), jnp.float32)
        case "constant" | "plateau":
            return lambda info: jnp.float32(1)
        case "step":
            # Divide integers. With floats, a rounding error could lower the learning rate too late.
            period, factor = schedule.step_epochs, schedule.factor
            return lambda info: factor ** jnp.floor_divide(info.epoch, period).astype(float)
        case "milestones":
            milestones, factor = np.array(schedule.milestones), schedule.factor
            return lambda info: factor ** jnp.sum(milestones <= info.epoch).astype(float)
        case "cosine":
            return lambda info: _cosine(1, 0, _progress(0, info.step, info.total_steps))
        case "warmup-cosine":
            return lambda info: _warmup_cosine(schedule, info)
        case "one-cycle":
            return lambda info: _one_cycle(schedule.warmup, info)
        case "linear":
            return lambda info: _line(1, schedule.end, _progress(0, info.step, info.total_steps))
        case "triangular":
            return lambda info: _triangular(schedule, info)


class PlateauState(NamedTuple):
    """State of the `plateau` schedule.

    All fields are arrays, so a change of the learning rate does not recompile the train step.
    """

    scale: jax.Array
    """float32: current factor of the base learning rate."""
    best: jax.Array
    """float32: loss of the most recent epoch that counted as an improvement."""
    bad_epochs: jax.Array
    """int32: number of epochs without improvement. It returns to 0 when it exceeds `patience`."""


def plateau_init() -> PlateauState:
    """Return the state of the `plateau` schedule before the first epoch."""
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
    """Return the state after an epoch, as in PyTorch's `ReduceLROnPlateau(mode="min")`.

    A loss below `best * (1 - threshold)` is an improvement. NaN is never an improvement. After more
    than `patience` epochs without improvement, `scale` is multiplied by `factor`. `scale` does not
    change if the learning rate `lr * scale` would change by `eps` or less. The function
    `reduce_on_plateau` of optax differs: it reduces the learning rate one epoch earlier.
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


def _warmup_cosine(schedule: Schedule, info: StepInfo) -> jax.Array:
    top = _top(schedule.warmup, info)
    rising = _line(schedule.start, 1, _progress(0, info.step, top))
    falling = _cosine(1, schedule.end, _progress(top, info.step, info.total_steps))
    return jnp.where(info.step < top, rising, falling)


def _triangular(schedule: Schedule, info: StepInfo) -> jax.Array:
    top = _top(schedule.warmup, info)
    rising = _line(schedule.start, 1, _progress(0, info.step, top))
    falling = _line(1, schedule.end, _progress(top, info.step, info.total_steps))
    return jnp.where(info.step < top, rising, falling)


def _top(warmup: float, info: StepInfo) -> jax.Array:
    """Return the number of the step with the highest learning rate."""
    # Add 1e-3, because a product such as 0.7 * 10 may round to just below 7.
    return jnp.floor(jnp.float32(warmup) * info.total_steps + 1e-3)


def _progress(begin: Any, step: Any, end: Any) -> jax.Array:
    """Return the position of `step` between `begin` and `end`, from 0 to 1."""
    length = jnp.maximum(jnp.asarray(end - begin, jnp.float32), 1)
    return jnp.clip((step - begin) / length, 0, 1)


def _line(start: float, end: float, progress: jax.Array) -> jax.Array:
    return start + (end - start) * progress


def _cosine(start: float, end: float, progress: jax.Array) -> jax.Array:
    """Return the value at `progress` of half a cosine wave from `start` to `end`."""
    return end + (start - end) * (1 + jnp.cos(jnp.pi * progress)) / 2
