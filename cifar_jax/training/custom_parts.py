"""Check the custom parts of an experiment file before a run starts."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from cifar_jax import models
from cifar_jax.catalog import CustomParts
from cifar_jax.config import Config
from cifar_jax.errors import UserError, one_line
from cifar_jax.training import rng, schedules
from cifar_jax.training.step import StepSpec

_TRIED_UPDATES = 10


def check(config: Config, custom: CustomParts) -> None:
    """Raise UserError if a custom part that the config needs is missing or invalid."""
    for name in config.model.arguments:
        if name in ("num_classes", "dtype", "dropout", "pooling"):
            raise UserError(f"model.arguments.{name} is set by the package: remove it")
    rules = [config.optimizer, *(group.optimizer for group in config.param_groups)]
    missing = []
    if any(rule.name == "custom" for rule in rules) and custom.optimizer is None:
        missing.append(("optimizer.name", "OPTIMIZER"))
    if config.schedule.name == "custom" and custom.schedule is None:
        missing.append(("schedule.name", "SCHEDULE"))
    for setting, name in missing:
        raise UserError(
            f"{setting}=custom needs {name} in your own experiment file: define it there, or "
            f"choose another {setting}"
        )
    for rule in rules:
        if rule.name == "custom" and custom.optimizer:
            made = _call(custom, "OPTIMIZER", partial(custom.optimizer, **rule.arguments))
            if not (hasattr(made, "init") and hasattr(made, "update")):
                raise UserError(
                    f"{_file(custom)}: OPTIMIZER returns an object of type "
                    f"{type(made).__name__}: it must return an optax.GradientTransformation"
                )
            if _descends(made):
                raise UserError(
                    f"{_file(custom)}: the updates of OPTIMIZER already point against the "
                    "gradient, so the train step would increase the loss. Leave out the learning "
                    "rate: for example, return optax.scale_by_adam() instead of optax.adam(1e-3)."
                )
    if config.schedule.name == "custom":
        factor = _call(
            custom,
            "SCHEDULE",
            lambda: jax.eval_shape(
                schedules.make(config.schedule, custom.schedule),
                schedules.StepInfo(*(jax.ShapeDtypeStruct((), jnp.int32),) * 3),
            ),
        )
        if factor.shape:
            raise UserError(
                f"{_file(custom)}: SCHEDULE returns an array of shape "
                f"{list(factor.shape)}: it must return one number"
            )
    if custom.augmentation:
        shape = models.image_shape(config.data.image_size)
        images = jax.ShapeDtypeStruct((config.batch_size, *shape), jnp.uint8)
        augment = partial(custom.augmentation, **config.data.arguments)
        changed = _call(
            custom,
            "AUGMENTATION",
            lambda: jax.eval_shape(augment, rng.make_streams(0).augment, images),
        )
        if getattr(changed, "shape", None) != images.shape:
            returned = getattr(changed, "shape", None)
            what = f"the shape {list(returned)}" if returned else f"{type(changed).__name__}"
            raise UserError(
                f"{_file(custom)}: AUGMENTATION returns {what} for images of shape "
                f"{list(images.shape)}: it must keep the shape"
            )
        if changed.dtype != images.dtype:
            raise UserError(
                f"{_file(custom)}: AUGMENTATION returns {changed.dtype} for uint8 images: it must "
                "return uint8 pixels between 0 and 255"
            )


def check_optimizer(config: Config, custom: CustomParts, spec: StepSpec) -> None:
    """Raise UserError if the custom optimizer cannot train the network.

    The functions of the optimizer are traced, but not executed.
    """
    if custom.optimizer is None:
        return
    params = models.variable_shapes(spec.model, config.data.image_size)["params"]
    rates = jax.ShapeDtypeStruct((1 + len(config.param_groups),), jnp.float32)

    def update(params: Any, rates: Any) -> Any:
        return spec.optimizer.update(params, spec.optimizer.init(params), params, rates=rates)

    state = _call(custom, "OPTIMIZER", lambda: jax.eval_shape(update, params, rates))[1]
    if any(jnp.issubdtype(leaf.dtype, jax.dtypes.extended) for leaf in jax.tree.leaves(state)):
        raise UserError(
            f"{_file(custom)}: the state of OPTIMIZER contains a random key, which a checkpoint "
            "cannot store: use jax.random.PRNGKey instead of jax.random.key"
        )


def _descends(optimizer: Any) -> bool:
    """Return whether an optimizer multiplies its updates by -1.

    The optimizer is tried on one parameter with positive gradients. It makes several updates,
    because the first may be zero, as in a warm-up. If it raises an exception, the result is False.
    """
    weights = {"kernel": jnp.zeros((2, 2))}
    gradients = {"kernel": jnp.ones((2, 2))}
    try:
        state, total = optimizer.init(weights), jnp.zeros((2, 2))
        for _ in range(_TRIED_UPDATES):
            updates, state = optimizer.update(gradients, state, weights)
            total += updates["kernel"]
        return bool((total < 0).all())
    except Exception:  # For example, the optimizer needs the network's own parameters.
        return False


def _call(custom: CustomParts, name: str, function: Callable[[], Any]) -> Any:
    """Return `function()`. If the user's code raises an exception, raise a UserError instead."""
    try:
        return function()
    except Exception as error:  # The user's code may raise any exception.
        raise UserError(
            f"{_file(custom)}: {name} fails when it is called: {one_line(error, custom.file)}"
        ) from error


def _file(custom: CustomParts) -> str:
    return str(custom.file or "the experiment file")
