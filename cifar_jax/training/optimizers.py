"""Update rules with optax in PyTorch's semantics, by groups of parameters, and the plateau rule.

Learning rates are no part of a rule: they are given to each update, so that another rate compiles
nothing anew.
"""

from collections.abc import Callable, Collection, Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax

from cifar_jax.config import Optimizer, ParamGroup
from cifar_jax.errors import UserError
from cifar_jax.training import muon

_FROZEN = "frozen"
"""The label of parameters that are not trained; all others have their group's number."""


def make_optimizer(
    optimizer: Optimizer, groups: Sequence[ParamGroup] = (), frozen: Collection[str] = ()
) -> optax.GradientTransformationExtraArgs:
    """The update rule of all parameters.

    Its `update` takes learning rates as `rates`, float32 `[1 + groups]`: that of `optimizer`, then
    of each group.

    Args:
      optimizer: the rule of what is in no group.
      groups: rules of their own; of several that name a parameter the first counts.
      frozen: paths of parameters that stay as they are.
    """
    rules = [optimizer, *(group.optimizer for group in groups)]

    def labels(params: Any) -> Any:
        return jax.tree_util.tree_map_with_path(lambda path, _: label(parameter_path(path)), params)

    def label(path: str) -> str:
        return _FROZEN if path in frozen else str(_group_of(groups, path))

    if not groups and not frozen:
        rule = _rule(optimizer)
    else:
        inner = {str(i): _rule(rule) for i, rule in enumerate(rules)}
        rule = optax.partition({**inner, _FROZEN: optax.set_to_zero()}, labels)
    scaled = optax.chain(rule, _scale_by_rates(labels))
    orthogonal = {str(i) for i, rule in enumerate(rules) if rule.name == "muon"}
    return optax.chain(scaled, _normalize(labels, orthogonal)) if orthogonal else scaled


def check(params: Any, optimizer: Optimizer, groups: Sequence[ParamGroup]) -> None:
    """See that every group names parameters, and that Muon has kernels alone.

    Args:
      params: a tree of arrays or shapes.
      optimizer: as of `make_optimizer`.
      groups: likewise.

    Raises:
      UserError: it is not so.
    """
    leaves = {
        parameter_path(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    rest = dict(leaves)
    for group in [*groups, ParamGroup(parameters="*", optimizer=optimizer)]:
        named = [path for path in leaves if _names(group, path)]
        if not named:
            raise UserError(
                f"param_groups: no parameter is called {group.parameters!r}; there are "
                f"{', '.join(list(leaves)[:4])}, …"
            )
        for path in named:
            leaf = rest.pop(path, None)
            if leaf is not None and group.optimizer.name == "muon" and leaf.ndim < 2:
                raise UserError(
                    f"muon is for kernels, and {path} is none: give it a group of its own, such as "
                    '{"parameters": "*/bias,*/scale", "optimizer": {"name": "sgd", "lr": 0.1}}'
                )


def validate_group_use(params: Any, optimizer: Optimizer, groups: Sequence[ParamGroup]) -> None:
    """See that every group has parameters for itself, that each of its patterns names some, and
    that Muon has kernels that are matrices.

    It takes what `check` takes.

    Raises:
      UserError: it is not so.
    """
    rules, used = [optimizer, *(group.optimizer for group in groups)], set()
    for key, leaf in jax.tree_util.tree_leaves_with_path(params):
        path = parameter_path(key)
        number = _group_of(groups, path)
        used.add(number)
        if rules[number].name == "muon" and leaf.ndim == 4 and leaf.shape[2] == 1 < leaf.shape[3]:
            raise UserError(
                f"muon is for kernels that mix channels, and {path} is depthwise: give it a group "
                f'of its own, such as {{"parameters": "{path}", "optimizer": '
                '{"name": "sgd", "lr": 0.1}}'
            )
    paths = [parameter_path(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    for number, group in enumerate(groups, start=1):
        for pattern in _patterns(group):
            if not any(fnmatchcase(path, pattern) for path in paths):
                raise UserError(
                    f"param_groups: no parameter is called {pattern!r}, of {group.parameters!r}: "
                    "correct it, or leave it out"
                )
        if number not in used:
            raise UserError(
                f"param_groups: all that is called {group.parameters!r} is in groups before it, of "
                "which the first counts: put it first, or leave it out"
            )


def members(params: Any, groups: Sequence[ParamGroup], numbers: Collection[int]) -> frozenset[str]:
    """Paths of the parameters that belong to the groups of these numbers, which are from 1 on."""
    paths = (parameter_path(path) for path, _ in jax.tree_util.tree_leaves_with_path(params))
    return frozenset(path for path in paths if _group_of(groups, path) in numbers)


def parameter_path(path: Any) -> str:
    """Such as `conv1/bias`, of a parameter's key path."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _group_of(groups: Sequence[ParamGroup], path: str) -> int:
    """The number of the first group that names it; 0 for none."""
    return next((i for i, group in enumerate(groups, start=1) if _names(group, path)), 0)


def _names(group: ParamGroup, path: str) -> bool:
    return any(fnmatchcase(path, pattern) for pattern in _patterns(group))


def _patterns(group: ParamGroup) -> list[str]:
    return [pattern.strip() for pattern in group.parameters.split(",")]


def _rule(optimizer: Optimizer) -> optax.GradientTransformation:
    """The direction of an update, in PyTorch's order of operations.

    `weight_decay` of sgd, adam and muon is coupled L2 (`torch.optim.SGD(weight_decay=)`): added to
    the gradient before momentum or moments see it. That of adamw is decoupled. Every parameter
    decays, biases and BatchNorm's included, as PyTorch's do.
    """
    decay = (
        optax.add_decayed_weights(optimizer.weight_decay)
        if optimizer.weight_decay
        else optax.identity()
    )
    adam = optax.scale_by_adam(optimizer.beta1, optimizer.beta2, optimizer.eps)
    match optimizer.name:
        case "sgd":
            momentum = (
                optax.trace(optimizer.momentum, optimizer.nesterov)
                if optimizer.momentum
                else optax.identity()
            )
            return optax.chain(decay, momentum)
        case "adam":
            return optax.chain(decay, adam)
        case "adamw":
            return optax.chain(adam, decay)
        case "muon":
            orthogonal = muon.scale_by_muon(
                optimizer.momentum,
                nesterov=optimizer.nesterov,
                steps=optimizer.newton_schulz_steps,
            )
            return optax.chain(decay, orthogonal)


def _scale_by_rates(labels: Callable[[Any], Any]) -> optax.GradientTransformationExtraArgs:
    """Multiply updates by minus the learning rate of their group."""

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
        rates, count = given["rates"], cast(optax.ScaleByScheduleState, state).count

        def scaled(update: jax.Array, label: str) -> jax.Array:
            return update if label == _FROZEN else update * -rates[int(label)]

        scaled_updates = jax.tree.map(scaled, updates, labels(updates))
        return scaled_updates, optax.ScaleByScheduleState(optax.safe_increment(count))

    return optax.GradientTransformationExtraArgs(init, update)


def _normalize(
    labels: Callable[[Any], Any], orthogonal: Collection[str]
) -> optax.GradientTransformation:
    """Updates that first bring Muon's kernels to their norm: see `muon.normalized`."""

    def update(updates: optax.Updates, params: optax.Params | None) -> optax.Updates:
        chosen = jax.tree.map(lambda label: label in orthogonal, labels(params))
        normal = muon.normalized(params, chosen)
        return jax.tree.map(
            lambda u, p, n, yes: (n - p) + u if yes else u, updates, params, normal, chosen
        )

    return optax.stateless(update)


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
    lr: float | jax.Array,
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
