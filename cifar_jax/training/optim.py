"""Optimisation with optax in PyTorch's semantics: chains, schedules and the plateau rule."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from cifar_jax.config import Optimizer, Schedule


def make_schedule(
    schedule: Schedule, lr: float, steps_per_epoch: int, epochs: int
) -> optax.Schedule:
    """Learning rate by step (the number of updates made so far).

    `plateau` is constant here: what it takes off is a factor in the train state, applied to the
    finished update, so that it neither recompiles nor depends on the optimizer.
    """
    steps = steps_per_epoch * epochs
    match schedule.name:
        case "constant" | "plateau":
            return optax.constant_schedule(lr)
        case "step":
            # In whole numbers: optax's `exponential_decay(staircase=True)` divides in floating
            # point, where jit may round to just below the boundary and be a step late.
            period, factor = schedule.step_epochs * steps_per_epoch, schedule.factor
            return lambda step: lr * factor ** jnp.floor_divide(step, period).astype(float)
        case "cosine":
            return optax.cosine_decay_schedule(lr, steps)
        case "one-cycle":
            if int(schedule.warmup * steps) == 0:
                # No step to warm up in, which optax 0.2.6 divides by. Its own last rate.
                return optax.cosine_decay_schedule(lr, steps, alpha=1 / (25 * 1e4))
            return optax.cosine_onecycle_schedule(steps, lr, schedule.warmup)


def make_optimizer(
    optimizer: Optimizer, learning_rate: optax.ScalarOrSchedule
) -> optax.GradientTransformation:
    """The update rule, in PyTorch's order of operations.

    `weight_decay` of sgd and adam is coupled L2 (`torch.optim.SGD(weight_decay=)`): added to the
    gradient before momentum or moments see it. That of adamw is decoupled. Every parameter decays,
    biases and BatchNorm's included, as PyTorch's do.
    """
    decay = (
        optax.add_decayed_weights(optimizer.weight_decay)
        if optimizer.weight_decay
        else optax.identity()
    )
    adam = optax.scale_by_adam(optimizer.beta1, optimizer.beta2, optimizer.eps)
    match optimizer.name:
        case "sgd":
            momentum = optax.trace(optimizer.momentum) if optimizer.momentum else optax.identity()
            rule = optax.chain(decay, momentum)
        case "adam":
            rule = optax.chain(decay, adam)
        case "adamw":
            rule = optax.chain(adam, decay)
    return optax.chain(rule, optax.scale_by_learning_rate(learning_rate))


class PlateauState(NamedTuple):
    """State of the plateau rule: scalar arrays, so that a reduction never recompiles."""

    scale: jax.Array
    """float32: what updates are multiplied by."""
    best: jax.Array
    """float32: the lowest value observed."""
    bad_epochs: jax.Array
    """int32: observations since, that did not improve on it."""


def plateau_init() -> PlateauState:
    """Before the first observation."""
    return PlateauState(jnp.float32(1), jnp.float32(jnp.inf), jnp.int32(0))


def plateau_update(
    state: PlateauState,
    value: jax.Array,
    *,
    lr: float,
    patience: int,
    factor: float,
    threshold: float,
    eps: float = 1e-8,
) -> PlateauState:
    """One observation an epoch, in the semantics of PyTorch's `ReduceLROnPlateau(mode="min")`.

    A value below `best · (1 - threshold)` is an improvement. After more than `patience` bad
    observations in a row the scale is multiplied by `factor`, unless that would change the learning
    rate `lr · scale` by no more than `eps`. NaN is never an improvement.

    optax's own `reduce_on_plateau` fires one observation earlier.
    """
    improved = value < state.best * (1 - threshold)
    bad_epochs = jnp.where(improved, 0, state.bad_epochs + 1)
    reduce = bad_epochs > patience
    lowered = state.scale * factor
    matters = lr * (state.scale - lowered) > eps
    return PlateauState(
        scale=jnp.where(reduce & matters, lowered, state.scale),
        best=jnp.where(improved, value, state.best).astype(jnp.float32),
        bad_epochs=jnp.where(reduce, 0, bad_epochs).astype(jnp.int32),
    )
