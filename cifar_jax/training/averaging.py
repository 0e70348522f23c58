"""Averages of the weights over training's steps, which are evaluated in their stead.

Pure functions of variables, which are a tree of float32 arrays: parameters and BatchNorm's running
statistics. They work within `jax.lax.fori_loop`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Variables = Any


class Ema(NamedTuple):
    """An exponential moving average; training itself goes on as without.

    What it keeps of itself rises to `decay` as `min(decay, (1 + t) / (10 + t))` in its t-th update,
    counted from 1, so that the first weights are soon forgotten (TensorFlow's
    `ExponentialMovingAverage(num_updates=)`).
    """

    decay: float
    """What an update keeps of the average, from 0 to below 1."""
    every: int = 1
    """Steps from update to update."""


class Lookahead(NamedTuple):
    """Slow weights, which take a step towards the fast ones, which then go on from there.

    With `decay` 1 - alpha it is that of M. Zhang et al., arXiv:1907.08610. airbench94
    (arXiv:2404.00498) has `Lookahead(decay=0.95**5, every=5, power=3)`. Fast steps after the last
    update are in no result. As there, running statistics take part.
    """

    decay: float
    """What an update keeps of the slow weights, from 0 to below 1, at the end of training."""
    every: int
    """Steps from update to update."""
    power: float = 0
    """Before the end it keeps `decay · progress**power`; 0 for as much all the time."""


def init(variables: Variables) -> Variables:
    """The average before the first step: a copy, so that both can be donated."""
    return jax.tree.map(jnp.copy, variables)


def update(
    rule: Ema | Lookahead,
    averaged: Variables,
    variables: Variables,
    step: jax.Array,
    progress: jax.Array,
) -> tuple[Variables, Variables]:
    """After a training step: the next average, and the weights to go on from.

    Args:
      rule: how to average.
      averaged: from `init` or the update before.
      variables: as the step left them.
      step: int32, steps made, this one included.
      progress: float32, the share of training that is done, from 0 to 1.
    """

    def towards() -> Variables:
        if isinstance(rule, Ema):
            updates = (step // rule.every).astype(jnp.float32)
            kept = jnp.minimum(rule.decay, (1 + updates) / (10 + updates))
        else:
            kept = rule.decay * progress**rule.power
        return jax.tree.map(
            lambda slow, fast: slow + (1 - kept) * (fast - slow), averaged, variables
        )

    # A branch, not a choice by `where`: between its updates a rule reads and writes no weights.
    due = step % rule.every == 0
    if isinstance(rule, Ema):
        return jax.lax.cond(due, towards, lambda: averaged), variables
    return jax.lax.cond(due, lambda: (towards(),) * 2, lambda: (averaged, variables))
