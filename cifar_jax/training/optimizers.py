"""Optimizers for groups of parameters, built from optax, with PyTorch's semantics.

An optimizer contains no learning rates. Each update takes the learning rates as an argument, so a
change of a learning rate does not recompile.
"""

from collections.abc import Callable, Collection, Hashable, Sequence
from fnmatch import fnmatchcase
from typing import Any

import jax
import optax

from cifar_jax.config import Optimizer, ParamGroup
from cifar_jax.errors import UserError
from cifar_jax.training import muon

CustomOptimizer = Callable[..., optax.GradientTransformation]


def make_optimizer(
    optimizer: Optimizer,
    groups: Sequence[ParamGroup] = (),
    custom: CustomOptimizer | None = None,
    clip_norm: float | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Return one optimizer for all parameters.

    Its function `update` takes the learning rates as the keyword argument `rates`, float32
    `[1 + groups]`. The first is the learning rate of `optimizer`. The others are the learning rates
    of the groups.

    Args:
      optimizer: settings for the parameters that are in no group.
      groups: parameter groups. A parameter belongs to the first group that matches it.
      custom: the function `OPTIMIZER` of the experiment file, for optimizer settings with the name
        `custom`. It is called with the setting `arguments`, and returns an optax transformation.
        The transformation must not apply a learning rate.
      clip_norm: largest norm of the gradient of all parameters together, as in PyTorch's
        `clip_grad_norm_`. None: gradients are not clipped.
    """
    rules = [optimizer, *(group.optimizer for group in groups)]

    def labels(params: Any) -> Any:
        """Return the group number of each parameter, as a string."""
        return jax.tree_util.tree_map_with_path(
            lambda path, _: str(_group_number(groups, parameter_path(path))), params
        )

    if groups:
        parts: dict[Hashable, optax.GradientTransformation] = {
            str(i): _direction(rule, custom) for i, rule in enumerate(rules)
        }
        direction = optax.partition(parts, labels)
    else:
        direction = _direction(optimizer, custom)
    scaled = optax.chain(direction, _scale_by_rates(labels))
    if clip_norm is not None:
        # Clip gradients first, so that their norm does not include the weight decay.
        scaled = optax.chain(optax.clip_by_global_norm(clip_norm), scaled)
    muon_rules = {str(i) for i, rule in enumerate(rules) if rule.name == "muon"}
    return optax.chain(scaled, _normalize_kernels(labels, muon_rules)) if muon_rules else scaled


def validate_groups(params: Any, optimizer: Optimizer, groups: Sequence[ParamGroup]) -> None:
    """Raise UserError if a parameter group is unused, or if Muon would train a wrong parameter.

    Args:
      params: a tree of arrays or shapes.
      optimizer: as for `make_optimizer`.
      groups: as for `make_optimizer`.

    Raises:
      UserError: a pattern matches no parameter, earlier groups match all parameters of a group, or
        Muon would train a bias, a scale or a depthwise kernel.
    """
    leaves = {
        parameter_path(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    for group in groups:
        for pattern in _patterns(group):
            if not any(fnmatchcase(path, pattern) for path in leaves):
                raise UserError(
                    f"param_groups: no parameter of the network matches {pattern!r}. The first "
                    f"parameters are {', '.join(list(leaves)[:4])}."
                )
    numbers = {path: _group_number(groups, path) for path in leaves}
    for number, group in enumerate(groups, start=1):
        if number not in numbers.values():
            raise UserError(
                f"param_groups: the group {group.parameters!r} is unused, because earlier groups "
                "match all its parameters: move it up or remove it"
            )
    rules = [optimizer, *(group.optimizer for group in groups)]
    refused: dict[str, str] = {}
    for path, leaf in leaves.items():
        if rules[numbers[path]].name == "muon":
            if leaf.ndim < 2:
                refused[path] = "not a kernel"
            elif leaf.ndim == 4 and leaf.shape[2] == 1 < leaf.shape[3]:
                refused[path] = "a depthwise kernel"
    for path, kind in refused.items():
        # Name all refused parameters by their last parts, such as `*/bias,*/scale`.
        others = [p for p in refused if refused[p] == kind]
        patterns = [f"*/{p.rpartition('/')[2]}" if "/" in p else p for p in others]
        example = path if kind == "a depthwise kernel" else ",".join(dict.fromkeys(patterns))
        raise UserError(
            f"muon cannot train {path}, which is {kind}: add a group to param_groups, such as "
            f'{{"parameters": "{example}", "optimizer": {{"name": "sgd", "lr": 0.1}}}}'
        )


def group_members(
    params: Any, groups: Sequence[ParamGroup], numbers: Collection[int]
) -> frozenset[str]:
    """Return the paths of all parameters in the groups with the given numbers, counted from 1."""
    paths = (parameter_path(path) for path, _ in jax.tree_util.tree_leaves_with_path(params))
    return frozenset(path for path in paths if _group_number(groups, path) in numbers)


def parameter_path(path: Any) -> str:
    """Return a parameter's key path as text, such as `conv1/bias`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _group_number(groups: Sequence[ParamGroup], path: str) -> int:
    """Return the number of the first group that matches a path, counted from 1.

    The result is 0 if no group matches.
    """
    for number, group in enumerate(groups, start=1):
        if any(fnmatchcase(path, pattern) for pattern in _patterns(group)):
            return number
    return 0


def _patterns(group: ParamGroup) -> list[str]:
    return [pattern.strip() for pattern in group.parameters.split(",")]


def _direction(
    optimizer: Optimizer, custom: CustomOptimizer | None
) -> optax.GradientTransformation:
    """Return a transformation from gradients to update directions, as in PyTorch.

    For sgd, adam and muon, `weight_decay` is coupled L2: it is added to the gradient before
    momentum, as in `torch.optim.SGD(weight_decay=)`. For adamw, it is decoupled. Weight decay
    applies to every parameter, including biases and the parameters of BatchNorm, as in PyTorch.
    """
    decay = (
        optax.add_decayed_weights(optimizer.weight_decay)
        if optimizer.weight_decay
        else optax.identity()
    )
    adam = optax.scale_by_adam(optimizer.beta1, optimizer.beta2, optimizer.eps)
    match optimizer.name:
        case "custom":
            assert custom is not None
            return custom(**optimizer.arguments)
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
    """Return a transformation that multiplies each update by minus its group's learning rate."""

    def update(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        del params
        rates = extra_args["rates"]
        scaled = jax.tree.map(
            lambda update, label: update * -rates[int(label)], updates, labels(updates)
        )
        return scaled, state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def _normalize_kernels(
    labels: Callable[[Any], Any], muon_rules: Collection[str]
) -> optax.GradientTransformation:
    """Return a transformation of updates that also scales Muon's kernels to a fixed norm.

    It adds the difference between the scaled and the current kernel to the kernel's update.
    """

    def update(updates: optax.Updates, params: optax.Params | None) -> optax.Updates:
        is_muon = jax.tree.map(lambda label: label in muon_rules, labels(params))
        normalized = muon.normalized(params, is_muon)
        return jax.tree.map(
            lambda u, p, n, yes: (n - p) + u if yes else u, updates, params, normalized, is_muon
        )

    return optax.stateless(update)
