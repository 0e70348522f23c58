"""Averages of the weights over the training steps. A run evaluates the average.

`Variables` are a tree of float32 parameters and BatchNorm statistics. All functions are pure and
can be used inside `jax.lax.fori_loop`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Variables = Any


class Ema(NamedTuple):
    """Exponential moving average of the weights. It does not affect the training.

    Update number t, counted from 1, keeps the fraction `min(decay, (1 + t) / (10 + t))` of the old
    average. The influence of the initial weights therefore vanishes quickly, as in TensorFlow's
    `ExponentialMovingAverage(num_updates=)`.
    """

    decay: float
    """Largest fraction of the old average that an update keeps, in [0, 1)."""
    every: int = 1
    """Number of training steps between updates of the average."""


class Lookahead(NamedTuple):
    """The Lookahead method: slow weights move toward the trained weights and then replace them.

    In M. Zhang et al., arXiv:1907.08610, `decay` is written as 1 - alpha. airbench94
    (arXiv:2404.00498) uses `Lookahead(decay=0.95**5, every=5, power=3)`. BatchNorm's running
    statistics are averaged as well. A run evaluates the slow weights, so training steps after the
    last update have no effect.
    """

    decay: float
    """Fraction of the old slow weights that an update keeps, in [0, 1). If `power` is above 0,
    earlier updates keep less."""
    every: int
    """Number of training steps between updates of the slow weights."""
    power: float = 0
    """Exponent that lowers `decay` early in training. An update uses `decay * progress**power`
    instead of `decay`. `progress` is the completed fraction of the training. 0: no change."""


def init(variables: Variables) -> Variables:
    """Return the average before the first step, which is a copy of the variables.

    Without a copy, the average and the variables could not both be donated.
    """
    return jax.tree.map(jnp.copy, variables)


def update(
    rule: Ema | Lookahead,
    averaged: Variables,
    variables: Variables,
    step: jax.Array,
    progress: jax.Array,
) -> tuple[Variables, Variables]:
    """Return the average after a step, and the variables from which training continues.

    Args:
      rule: the kind of average.
      averaged: the average before the step.
      variables: the variables after the step.
      step: number of completed steps including the current step, int32.
      progress: completed fraction of the training, float32 from 0 to 1.
    """

    def move() -> Variables:
        if isinstance(rule, Ema):
            updates = (step // rule.every).astype(jnp.float32)
            keep = jnp.minimum(rule.decay, (1 + updates) / (10 + updates))
        else:
            keep = rule.decay * progress**rule.power
        return jax.tree.map(
            lambda slow, fast: slow + (1 - keep) * (fast - slow), averaged, variables
        )

    # With `where` instead of `cond`, even steps without an update would read and write all weights.
    due = step % rule.every == 0
    if isinstance(rule, Ema):
        return jax.lax.cond(due, move, lambda: averaged), variables
    return jax.lax.cond(due, lambda: (move(),) * 2, lambda: (averaged, variables))
