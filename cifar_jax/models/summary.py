"""The layer table of a network, in the columns of the paper's own."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from cifar_jax import models


class Layer(NamedTuple):
    """A row: a layer that says its configuration, wherever it lies in the network."""

    name: str
    """Its path, such as `stage1_block1/conv1/depthwise`."""
    output_size: str
    """`32x32`, or `-` for vectors, as in the paper."""
    configuration: str
    parameters: int


def summarise(model: nn.Module) -> list[Layer]:
    """The layers of `model` in the order in which they run; nothing is computed."""
    found: dict[str, tuple[str, str]] = {}

    def record(call: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        module = context.module
        result = call(*args, **kwargs)
        configuration = getattr(module, "configuration", None)
        if context.method_name == "__call__" and configuration is not None:
            configuration = configuration.format(in_dim=args[0].shape[-1])
            found["/".join(module.path)] = (_size(args[0], result), configuration)
        return result

    images = jax.ShapeDtypeStruct((1, *models.IMAGE_SHAPE), jnp.float32)
    with nn.intercept_methods(record):
        variables = jax.eval_shape(model.init, jax.random.key(0), images)
    rows = [Layer("input", _size(images, images), "-", 0)]
    for name, (size, configuration) in found.items():
        if any(name.startswith(f"{other}/") for other in found):
            continue  # part of a layer that has a row of its own
        rows.append(Layer(name, size, configuration, _parameters(variables["params"], name)))
    return rows


def _size(before: Any, after: Any) -> str:
    """The paper gives a global pooling 1x1, and everything after it none."""
    if after.ndim == 4:
        return f"{after.shape[1]}x{after.shape[2]}"
    return "1x1" if before.ndim == 4 else "-"


def _parameters(params: Any, path: str) -> int:
    """Of the layer itself, or of all that is in it."""
    for part in path.split("/"):
        params = params.get(part, {})
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
