"""The layer table of a network, in the columns of the paper's own."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.traverse_util import flatten_dict

from cifar_jax import models
from cifar_jax.models.layers import SelfAttention


class Layer(NamedTuple):
    """A row: a layer that says its configuration, wherever it lies in the network."""

    name: str
    """Its path, such as `stage1_block1/conv1/depthwise`."""
    output_size: str
    """`32x32`, or `-` for vectors, as in the paper."""
    configuration: str
    parameters: int
    multiply_adds: int
    """Of convolutions, dense layers and attention, forward, for one image."""


def summarise(model: nn.Module) -> list[Layer]:
    """The layers of `model` in the order in which they run; nothing is computed."""
    found: dict[str, tuple[str, str]] = {}
    positions: dict[str, int] = {}
    attention: dict[str, int] = {}

    def record(call: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        module, result = context.module, call(*args, **kwargs)
        if context.method_name != "__call__":
            return result
        path = "/".join(module.path)
        positions[path] = math.prod(result.shape[1:-1])
        if isinstance(module, SelfAttention):
            channels = result.shape[-1]
            attention[path] = positions[path] ** 2 * (channels // 8 + channels)
        configuration = getattr(module, "configuration", None)
        if configuration is not None:
            configuration = configuration.format(in_dim=args[0].shape[-1])
            found[path] = (_size(args[0], result), configuration)
        return result

    images = jax.ShapeDtypeStruct((1, *models.IMAGE_SHAPE), jnp.float32)
    with nn.intercept_methods(record):
        variables = jax.eval_shape(model.init, jax.random.key(0), images)
    leaves: dict[tuple[str, ...], Any] = flatten_dict(variables["params"])
    params = {"/".join(path): leaf for path, leaf in leaves.items()}
    rows = [Layer("input", _size(images, images), "-", 0, 0)]
    for name, (size, configuration) in found.items():
        if any(name.startswith(f"{other}/") for other in found):
            continue  # part of a layer that has a row of its own
        own = {path: leaf for path, leaf in params.items() if path.startswith(f"{name}/")}
        multiply_adds = attention.get(name, 0) + sum(
            positions[path.removesuffix("/kernel")] * leaf.size
            for path, leaf in own.items()
            if path.endswith("/kernel")
        )
        parameters = sum(leaf.size for leaf in own.values())
        rows.append(Layer(name, size, configuration, parameters, multiply_adds))
    return rows


def _size(before: Any, after: Any) -> str:
    """The paper gives a global pooling 1x1, and everything after it none."""
    if after.ndim == 4:
        return f"{after.shape[1]}x{after.shape[2]}"
    return "1x1" if before.ndim == 4 else "-"
