"""List the layers of a network in a table with the columns of the paper's tables."""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.traverse_util import flatten_dict

from cifar_jax import models, ops
from cifar_jax.models import layers

Path = tuple[str, ...]

_SCOPE = "summary-row-"
"""Prefix of the JAX name scope that marks the operations of a module. The index of the module
follows the prefix."""


@dataclass
class Layer:
    """One row of the layer table."""

    name: str
    """Path of the module, such as `stage1_block1/conv1/depthwise`."""
    output_size: str
    """Output size as text: `32x32`, the length of a sequence, or `-` for a vector."""
    configuration: str
    parameters: int = 0
    multiply_adds: int = 0
    """Number of multiply-adds in convolutions and matrix products, in the forward pass of one
    image."""


def summarize(model: nn.Module, image_size: int = models.IMAGE_SHAPE[0]) -> list[Layer]:
    """Return the layers of a model in the order of the forward pass. Only shapes are computed.

    A layer is a module of `models.layers` or one of Linen's layers. The row of a layer includes the
    modules inside the layer. Any other module gets a row only if it has parameters or matrix
    products outside of its layers.
    """
    rows: dict[Path, Layer] = {}
    tabulated: set[Path] = set()

    def row_of(path: Path) -> Path:
        """Return the path of the outermost layer that is `path` or contains it.

        Without such a layer, return the path of the innermost module that contains `path`.
        """
        prefixes = [path[:end] for end in range(len(path) + 1)]
        return next((p for p in prefixes if p in tabulated), [p for p in prefixes if p in rows][-1])

    def record(call: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        module, path = context.module, context.module.path
        if context.method_name != "__call__":
            return call(*args, **kwargs)
        if path not in rows:
            kind = type(module).__name__
            rows[path] = Layer("/".join(path) or kind, "", kind)
            shape = getattr(args[0], "shape", ()) if args else ()
            configuration = _configuration(module, shape[-1] if shape else "")
            if configuration and row_of(path) == path:
                tabulated.add(path)
                rows[path].configuration = configuration
        with jax.named_scope(f"{_SCOPE}{list(rows).index(path)}"):
            result = call(*args, **kwargs)
        rows[path].output_size = _size(args[0] if args and path in tabulated else None, result)
        return result

    images = jax.ShapeDtypeStruct((1, *models.image_shape(image_size)), jnp.float32)
    variables = models.variable_shapes(model, image_size)
    with nn.intercept_methods(record), ops.force_platform():
        traced = jax.make_jaxpr(lambda v, x: model.apply(v, x, train=False))(variables, images)

    params: dict[Path, Any] = flatten_dict(variables["params"])
    for path, leaf in params.items():
        rows[row_of(path[:-1])].parameters += leaf.size
    paths = list(rows)
    for index, multiply_adds in _products(traced.jaxpr):
        rows[row_of(paths[index])].multiply_adds += multiply_adds
    shown = [r for path, r in rows.items() if path in tabulated or r.parameters or r.multiply_adds]
    return [Layer("input", f"{images.shape[1]}x{images.shape[2]}", "-"), *shown]


def _configuration(module: nn.Module, in_dim: Any) -> str | None:
    """Return the text of the column "Layer Configuration", or None if the module is not a layer."""
    match module:
        case nn.Conv():
            return _conv(module)
        case nn.Dense(features=features):
            return f"{features} Neurons"
        case layers.BatchNorm() | nn.BatchNorm():
            return f"BatchNorm2d {in_dim}"
        case nn.Dropout(rate=rate):
            return f"Dropout({rate})"
        case layers.Pool(kind=kind):
            suffix = {"max": "", "average": ", average", "strided-conv": ", stride=2"}[kind]
            return f"2x2{suffix}"
        case layers.ReLU():
            return "ReLU"
        case layers.GlobalAveragePool():
            return "AdaptiveAvgPool2d"
        case layers.SelfAttention():
            return f"In_dim={in_dim}"
    # The classes in these files of Linen are not layers: they contain or transform modules.
    containers = ("module", "transforms", "combinators")
    origins = [cls.__module__.split(".") for cls in type(module).__mro__]
    is_layer = any(o[:2] == ["flax", "linen"] and o[-1] not in containers for o in origins)
    return type(module).__name__ if is_layer else None


def _conv(conv: nn.Conv) -> str:
    size, stride = conv.kernel_size, conv.strides
    words = ["x".join(map(str, size)) if isinstance(size, Sequence) else size, conv.features]
    if (stride := stride[0] if isinstance(stride, Sequence) else stride or 1) != 1:
        words.append(f"stride={stride}")
    if conv.padding != 0:
        words.append(f"padding={conv.padding}")
    if conv.feature_group_count != 1:
        words.append(f"groups={conv.feature_group_count}")
    if not conv.use_bias:
        words.append("bias=False")
    return ", ".join(map(str, words))


def _size(before: Any, after: Any) -> str:
    """Return the output size as text: `32x32`, `1x1` for global pooling, or `-` for a vector."""
    match getattr(after, "shape", ()):
        case (_, height, width, _):
            return f"{height}x{width}"
        case (_, length, _):
            return str(length)
    return "1x1" if getattr(before, "ndim", 0) == 4 else "-"


def _products(jaxpr: Any, index: int = 0) -> Iterator[tuple[int, int]]:
    """Yield the module index and the multiply-adds of each convolution and matrix product.

    `index` is the index of the module that contains `jaxpr`.
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
