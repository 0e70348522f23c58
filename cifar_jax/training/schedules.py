"""How the learning rate moves over a run: shapes, by which the highest rate is multiplied.

A shape is a function of a `StepInfo`, whose numbers may be traced: neither another rate nor another
length of the run compiles anything anew.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from cifar_jax.config import Schedule


class StepInfo(NamedTuple):
    """Where in a run an update is made: scalars of int32."""

    step: Any
    """Updates made before it."""
    epoch: Any
    """Epochs that were over before it began."""
    steps: Any
    """Updates that the whole run makes."""


Shape = Callable[[StepInfo], jax.Array]
"""float32, of the highest learning rate."""

START, END = 1 / 25, 1 / 25e4
"""Of `one-cycle`, of the highest rate: PyTorch's `div_factor`, and with it `final_div_factor`."""


def make(schedule: Schedule) -> Shape:
    """The shape that the settings name.

    `plateau` is constant here: what it takes off is a factor in the train state, applied to the
    finished update.
    """
    match schedule.name:
        case "constant" | "plateau":
            return lambda moment: jnp.float32(1)
        case "step":
            # By whole epochs: a quotient in floating point may be a step late at its boundary.
            period, factor = schedule.step_epochs, schedule.factor
            return lambda moment: factor ** jnp.floor_divide(moment.epoch, period).astype(float)
        case "cosine":
            return lambda moment: _cosine(1, 0, _share(0, moment.step, moment.steps))
        case "one-cycle":
            return lambda moment: _one_cycle(schedule.warmup, moment)
        case "linear":
            return lambda moment: _line(1, schedule.end, _share(0, moment.step, moment.steps))
        case "triangular":
            return lambda moment: _triangular(schedule, moment)


def _one_cycle(warmup: float, moment: StepInfo) -> jax.Array:
    top = _top(warmup, moment)
    rising = _cosine(START, 1, _share(0, moment.step, top))
    falling = _cosine(1, END, _share(top, moment.step, moment.steps))
    return jnp.where(moment.step < top, rising, falling)


def _triangular(schedule: Schedule, moment: StepInfo) -> jax.Array:
    top = _top(schedule.warmup, moment)
    rising = _line(schedule.start, 1, _share(0, moment.step, top))
    falling = _line(1, schedule.end, _share(top, moment.step, moment.steps))
    return jnp.where(moment.step < top, rising, falling)


def _top(warmup: float, moment: StepInfo) -> jax.Array:
    """The step of the highest rate."""
    # The thousandth is for products such as 0.7 · 10, which must not round to below 7.
    return jnp.floor(jnp.float32(warmup) * moment.steps + 1e-3)


def _share(begin: Any, step: Any, end: Any) -> jax.Array:
    """How much of the way from `begin` to `end` the step has gone, from 0 to 1."""
    way = jnp.maximum(jnp.asarray(end - begin, jnp.float32), 1)
    return jnp.clip((step - begin) / way, 0, 1)


def _line(start: float, end: float, share: jax.Array) -> jax.Array:
    return start + (end - start) * share


def _cosine(start: float, end: float, share: jax.Array) -> jax.Array:
    """From `start` to `end` on half a wave."""
    return end + (start - end) * (1 + jnp.cos(jnp.pi * share)) / 2
