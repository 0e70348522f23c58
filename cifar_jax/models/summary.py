"""The layer table of a network, in the columns of the paper's own."""

import math
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.traverse_util import flatten_dict

from cifar_jax import models, ops

Path = tuple[str, ...]

_NO_LAYERS = ("module", "transforms", "combinators")
"""Of Linen: where what holds layers comes from."""
_MARK = "module-"
"""With a number, the name of a scope that a module's operations are traced in."""


class Layer(NamedTuple):
    """A row: a layer that says its configuration, wherever it lies in the network."""

    name: str
    """Its path, such as `stage1_block1/conv1/depthwise`."""
    output_size: str
    """`32x32`, or `-` for vectors, as in the paper; of a sequence its length."""
    configuration: str
    parameters: int
    multiply_adds: int
    """Of convolutions and matrix products, forward, for one image."""


def summarise(model: nn.Module) -> list[Layer]:
    """The layers of `model` in the order in which they run; nothing is computed.

    They are the paper's layers and Linen's. Another module has a row for what it holds or
    multiplies itself, outside of its layers.
    """
    sizes: dict[Path, str] = {}
    layers: dict[Path, str] = {}
    names: dict[Path, str] = {}

    def record(call: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        module, path = context.module, context.module.path
        if context.method_name != "__call__":
            return call(*args, **kwargs)
        inside = any(path[:end] in layers for end in range(len(path)))
        names.setdefault(path, type(module).__name__)
        if not inside and (configuration := _configuration(module)):
            layers[path] = configuration.format(in_dim=args[0].shape[-1] if args else "")
        with jax.named_scope(f"{_MARK}{list(names).index(path)}"):
            result = call(*args, **kwargs)
        sizes[path] = _size(args[0] if args and path in layers else None, result)
        return result

    images = jax.ShapeDtypeStruct((1, *models.IMAGE_SHAPE), jnp.float32)
    variables = models.variable_shapes(model)
    with nn.intercept_methods(record), ops.plain():
        traced = jax.make_jaxpr(lambda v, x: model.apply(v, x, train=False))(variables, images)

    def row(path: Path) -> Path:
        """The layer that holds `path`, or else the module."""
        above = [path[:end] for end in range(len(path) + 1)]
        return next((p for p in above if p in layers), [p for p in above if p in names][-1])

    parameters, multiply_adds = Counter[Path](), Counter[Path]()
    leaves: dict[Path, Any] = flatten_dict(variables["params"])
    for path, leaf in leaves.items():
        parameters[row(path[:-1])] += leaf.size
    for number, count in _products(traced.jaxpr):
        multiply_adds[row(list(names)[number])] += count
    rows = [Layer("input", f"{images.shape[1]}x{images.shape[2]}", "-", 0, 0)]
    for path, kind in names.items():
        if path in layers or parameters[path] or multiply_adds[path]:
            configuration = layers.get(path, kind)
            name = "/".join(path) or kind
            rows.append(
                Layer(name, sizes[path], configuration, parameters[path], multiply_adds[path])
            )
    return rows


def _configuration(module: nn.Module) -> str:
    """In the words of the paper's tables; empty for what is no layer."""
    if isinstance(own := getattr(module, "configuration", None), str):
        return own
    origins = [kind.__module__.split(".") for kind in type(module).__mro__]
    if not any(o[:2] == ["flax", "linen"] and o[-1] not in _NO_LAYERS for o in origins):
        return ""
    words = [type(module).__name__]
    match module:
        case nn.Conv(kernel_size=size, features=features, strides=strides):
            words += [_by(size), str(features)]
            words += [f"stride={_by(strides)}"] if _by(strides).strip("1x") else []
        case nn.Dense(features=features):
            words += [str(features)]
        case nn.MultiHeadDotProductAttention(num_heads=heads):
            words += [f"{heads} heads"]
        case nn.Dropout(rate=rate):
            words += [str(rate)]
    return " ".join([words[0], ", ".join(words[1:])]).strip()


def _by(size: Any) -> str:
    return "x".join(map(str, size)) if isinstance(size, tuple | list) else str(size or 1)


def _size(before: Any, after: Any) -> str:
    """The paper gives a global pooling 1x1, and everything after it none."""
    match getattr(after, "shape", ()):
        case (_, height, width, _):
            return f"{height}x{width}"
        case (_, length, _):
            return str(length)
    return "1x1" if getattr(before, "ndim", 0) == 4 else "-"


def _products(jaxpr: Any, module: int = 0) -> Iterator[tuple[int, int]]:
    """Multiply-adds of each product in `jaxpr`, with the number of the module that it is in."""
    for equation in jaxpr.eqns:
        marks = re.findall(f"{_MARK}(\\d+)", str(equation.source_info.name_stack))
        inner = int(marks[-1]) if marks else module
        given, made = ([v.aval for v in of] for of in (equation.invars, equation.outvars))
        parameters = equation.params
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = parameters["dimension_numbers"]
            yield inner, made[0].size * math.prod(given[0].shape[axis] for axis in contracted)
        elif equation.primitive.name == "conv_general_dilated":
            kernel = given[1]
            yield (
                inner,
                made[0].size
                * kernel.size
                // kernel.shape[parameters["dimension_numbers"].rhs_spec[0]],
            )
        times = parameters["length"] if equation.primitive.name == "scan" else 1
        for parameter in parameters.values():
            for part in parameter if isinstance(parameter, tuple | list) else [parameter]:
                part = getattr(part, "jaxpr", part)
                if hasattr(part, "eqns"):
                    for number, count in _products(part, inner):
                        yield number, times * count
