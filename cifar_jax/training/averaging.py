"""Averages of the weights over the training steps, which are evaluated instead of the weights.

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
    average. The initial weights are therefore forgotten quickly, as in TensorFlow's
    `ExponentialMovingAverage(num_updates=)`.
    """

    decay: float
    """Largest fraction of the old average that an update keeps, in [0, 1)."""
    every: int = 1
    """Number of steps between updates."""


class Lookahead(NamedTuple):
    """The Lookahead method: slow weights move toward the trained weights and then replace them.

    In M. Zhang et al., arXiv:1907.08610, `decay` is written as 1 - alpha. airbench94
    (arXiv:2404.00498) uses `Lookahead(decay=0.95**5, every=5, power=3)`. BatchNorm's running
    statistics are averaged as well. The slow weights are evaluated, so training steps after the
    last update have no effect.
    """

    decay: float
    """Fraction of the old slow weights that an update keeps at the end of training, in [0, 1)."""
    every: int
    """Number of steps between updates."""
    power: float = 0
    """Exponent that lowers `decay` early in training. An update keeps `decay * progress**power`,
    where `progress` is the completed fraction of the training. 0: constant."""


def init(variables: Variables) -> Variables:
    """Return the average before the first step.

    The average is a copy of `variables`, so that both can be donated.
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
      step: number of steps up to and including this one, int32.
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

    # Use `cond`, not `where`: a step without an update then reads and writes no weights.
    due = step % rule.every == 0
    if isinstance(rule, Ema):
        return jax.lax.cond(due, move, lambda: averaged), variables
    return jax.lax.cond(due, lambda: (move(),) * 2, lambda: (averaged, variables))
