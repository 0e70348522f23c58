"""Update rules with optax in PyTorch's semantics, by groups of parameters, and the plateau rule.

Learning rates are no part of a rule: they are given to each update, so that another rate compiles
nothing anew.
"""

from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax

from cifar_jax.config import Optimizer


def make_optimizer(optimizer: Optimizer) -> optax.GradientTransformationExtraArgs:
    """The update rule. Its `update` takes the learning rate, a float32 scalar, as `rate`."""
    return optax.chain(_rule(optimizer), _scale_by_rate())


def _rule(optimizer: Optimizer) -> optax.GradientTransformation:
    """The direction of an update, in PyTorch's order of operations.

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
            return optax.chain(decay, momentum)
        case "adam":
            return optax.chain(decay, adam)
        case "adamw":
            return optax.chain(adam, decay)


def _scale_by_rate() -> optax.GradientTransformationExtraArgs:
    """Multiply updates by minus the learning rate that they are given."""

    def init(params: optax.Params) -> optax.ScaleByScheduleState:
        del params
        # Runs of before had the schedule here, and its count of updates in their checkpoints.
        return optax.ScaleByScheduleState(jnp.int32(0))

    def update(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        **given: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        del params
        rate, count = given["rate"], cast(optax.ScaleByScheduleState, state).count
        scaled = jax.tree.map(lambda u: u * jnp.asarray(-rate, u.dtype), updates)
        return scaled, optax.ScaleByScheduleState(optax.safe_increment(count))

    return optax.GradientTransformationExtraArgs(init, update)


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
