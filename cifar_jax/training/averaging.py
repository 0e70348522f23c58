"""Averages of the weights over the training steps, which are evaluated instead of the weights.

Pure functions of variables: a tree of float32 parameters and BatchNorm statistics. They can be
used inside `jax.lax.fori_loop`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Variables = Any


class Ema(NamedTuple):
    """Exponential moving average of the weights. It does not affect the training.

    The t-th update, from 1, keeps `min(decay, (1 + t) / (10 + t))` of the average, so that the
    initial weights are forgotten soon (TensorFlow's `ExponentialMovingAverage(num_updates=)`).
    """

    decay: float
    """Fraction of the average that an update keeps, in [0, 1)."""
    every: int = 1
    """Steps between updates."""


class Lookahead(NamedTuple):
    """Slow weights that move towards the fast ones, which then continue from there.

    With `decay` = 1 - alpha this is Lookahead by M. Zhang et al., arXiv:1907.08610. airbench94
    (arXiv:2404.00498) uses `Lookahead(decay=0.95**5, every=5, power=3)`. Running statistics are
    averaged as well. Fast steps after the last update have no effect on the result.
    """

    decay: float
    """Fraction of the slow weights that an update keeps at the end of training, in [0, 1)."""
    every: int
    """Steps between updates."""
    power: float = 0
    """Earlier an update keeps `decay * progress**power`; 0: constant."""


def init(variables: Variables) -> Variables:
    """Return the average before the first step: a copy, so that both can be donated."""
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
      averaged: the result of `init` or of the previous update.
      variables: the variables after the step.
      step: int32, number of steps including this one.
      progress: float32, completed fraction of the training, in 0..1.
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

    # A branch instead of `where`: steps without an update read and write no weights.
    due = step % rule.every == 0
    if isinstance(rule, Ema):
        return jax.lax.cond(due, move, lambda: averaged), variables
    return jax.lax.cond(due, lambda: (move(),) * 2, lambda: (averaged, variables))
