"""The layer table of a network, in the columns of the paper's tables."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.traverse_util import flatten_dict

from cifar_jax import models, ops

Path = tuple[str, ...]

_SCOPE = "summary-row-"
"""Followed by the index of a module, names the scope in which its operations are traced."""


@dataclass
class Layer:
    """One row of the table."""

    name: str
    """Path of the module, such as `stage1_block1/conv1/depthwise`."""
    output_size: str
    """`32x32`; the length of a sequence; `-` for vectors, as in the paper."""
    configuration: str
    parameters: int = 0
    multiply_adds: int = 0
    """In convolutions and matrix products of the forward pass, for one image."""


def summarize(model: nn.Module) -> list[Layer]:
    """Return the layers of a model in the order of the forward pass, traced on shapes alone.

    A layer is a module with a `configuration` (see `models.layers`) or one of Linen's layers. What
    is inside a layer counts for it. Any other module has a row if it has parameters or products of
    its own, outside of the layers in it.
    """
    rows: dict[Path, Layer] = {}
    layers: set[Path] = set()

    def row_of(path: Path) -> Path:
        """Return the path of the outermost layer around a path, or else of the nearest module."""
        prefixes = [path[:end] for end in range(len(path) + 1)]
        return next((p for p in prefixes if p in layers), [p for p in prefixes if p in rows][-1])

    def record(call: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        module, path = context.module, context.module.path
        if context.method_name != "__call__":
            return call(*args, **kwargs)
        if path not in rows:
            kind = type(module).__name__
            rows[path] = Layer("/".join(path) or kind, "", kind)
            configuration = _configuration(module)
            if configuration and row_of(path) == path:
                layers.add(path)
                in_dim = args[0].shape[-1] if args else ""
                rows[path].configuration = configuration.format(in_dim=in_dim)
        with jax.named_scope(f"{_SCOPE}{list(rows).index(path)}"):
            result = call(*args, **kwargs)
        rows[path].output_size = _size(args[0] if args and path in layers else None, result)
        return result

    images = jax.ShapeDtypeStruct((1, *models.IMAGE_SHAPE), jnp.float32)
    variables = models.variable_shapes(model)
    with nn.intercept_methods(record), ops.force_platform():
        traced = jax.make_jaxpr(lambda v, x: model.apply(v, x, train=False))(variables, images)

    params: dict[Path, Any] = flatten_dict(variables["params"])
    for path, leaf in params.items():
        rows[row_of(path[:-1])].parameters += leaf.size
    paths = list(rows)
    for index, multiply_adds in _products(traced.jaxpr):
        rows[row_of(paths[index])].multiply_adds += multiply_adds
    shown = [r for path, r in rows.items() if path in layers or r.parameters or r.multiply_adds]
    return [Layer("input", f"{images.shape[1]}x{images.shape[2]}", "-"), *shown]


def _configuration(module: nn.Module) -> str:
    """Return a layer's configuration, or an empty string if the module is not a layer."""
    if isinstance(configuration := getattr(module, "configuration", None), str):
        return configuration
    # These modules of Linen only contain or transform other modules.
    containers = ("module", "transforms", "combinators")
    origins = [cls.__module__.split(".") for cls in type(module).__mro__]
    if not any(o[:2] == ["flax", "linen"] and o[-1] not in containers for o in origins):
        return ""
    name = type(module).__name__
    match module:
        case nn.Conv(kernel_size=size, features=features, strides=strides):
            stride = _times(strides)
            suffix = f", stride={stride}" if stride.strip("1x") else ""
            return f"{name} {_times(size)}, {features}{suffix}"
        case nn.Dense(features=features):
            return f"{name} {features}"
        case nn.MultiHeadDotProductAttention(num_heads=heads):
            return f"{name} {heads} heads"
        case nn.Dropout(rate=rate):
            return f"{name} {rate}"
    return name


def _times(size: Any) -> str:
    return "x".join(map(str, size)) if isinstance(size, tuple | list) else str(size or 1)


def _size(before: Any, after: Any) -> str:
    """Return the output size. As in the paper, it is 1x1 for a global pooling and - afterwards."""
    match getattr(after, "shape", ()):
        case (_, height, width, _):
            return f"{height}x{width}"
        case (_, length, _):
            return str(length)
    return "1x1" if getattr(before, "ndim", 0) == 4 else "-"


def _products(jaxpr: Any, index: int = 0) -> Iterator[tuple[int, int]]:
    """Yield the module index and the multiply-adds of each product in a jaxpr.

    `index` is the module that the jaxpr itself belongs to.
    """
    for equation in jaxpr.eqns:
        scopes = re.findall(f"{_SCOPE}(\\d+)", str(equation.source_info.name_stack))
        inner = int(scopes[-1]) if scopes else index
        parameters = equation.params
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = parameters["dimension_numbers"]
            depth = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
            yield inner, equation.outvars[0].aval.size * depth
        elif equation.primitive.name == "conv_general_dilated":
            kernel = equation.invars[1].aval
            features = kernel.shape[parameters["dimension_numbers"].rhs_spec[0]]
            yield inner, equation.outvars[0].aval.size * kernel.size // features
        repeats = parameters["length"] if equation.primitive.name == "scan" else 1
        for parameter in parameters.values():
            for part in parameter if isinstance(parameter, tuple | list) else [parameter]:
                part = getattr(part, "jaxpr", part)
                if hasattr(part, "eqns"):
                    for number, count in _products(part, inner):
                        yield number, repeats * count
