"""The paper's networks by name, a fast one, and a person's own."""

import difflib
import itertools
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from cifar_jax.errors import UserError
from cifar_jax.models.basic import Basic
from cifar_jax.models.custom import IMAGE_SHAPE, CustomModel
from cifar_jax.models.net import Net, NetBNGAP, NetInception
from cifar_jax.models.resnet import ResNet10, ResNet10Separable, ResNet18
from cifar_jax.models.speednet import SpeedNet

__all__ = [
    "IMAGE_SHAPE",
    "MODELS",
    "PAPER_PARAMETERS",
    "CustomModel",
    "count_parameters",
    "create",
    "init_variables",
    "match_variables",
    "takes",
    "transfer",
    "variable_shapes",
]

MODELS: dict[str, Callable[..., nn.Module]] = {
    "basic": Basic,
    "net": Net,
    "net-bn-gap": NetBNGAP,
    "net-attention": partial(NetBNGAP, attention=True),
    "net-inception": NetInception,
    "resnet18": ResNet18,
    "resnet10": ResNet10,
    "resnet10-separable": ResNet10Separable,
    "speednet": SpeedNet,
}

PAPER_PARAMETERS: dict[str, int] = {
    "basic": 62_006,  # Table 3
    "net": 2_348_030,  # Table 6
    "net-bn-gap": 413_566,  # Table 9
    "net-attention": 521_646,  # Table 12
    "resnet18": 11_173_962,  # Table 14
    "resnet10": 4_903_242,  # Table 20
    "resnet10-separable": 722_186,  # Table 25
}


def create(name: str, own: CustomModel | None = None, **options: Any) -> nn.Module:
    """The network of that name. Options that are None keep the network's own default.

    Args:
      name: a key of `MODELS`, or what `own` is called.
      own: a module of one's own, whose name is none of `MODELS`.
      **options: fields of the module, such as `num_classes`, `dropout`, `pooling`, `dtype`.

    Raises:
      UserError: an unknown name (naming the nearest), an option that this network lacks, or a
        module of one's own that cannot be trained.
    """
    given = {key: value for key, value in options.items() if value is not None}
    if own:
        if name in MODELS:
            raise UserError(f"{name!r} is a network of the package's: {own} does not go with it")
        return own.build(name, **given)
    if name not in MODELS:
        close = difflib.get_close_matches(name, MODELS, n=1)
        hint = f"; did you mean {close[0]}?" if close else f"; there are {', '.join(MODELS)}"
        raise UserError(f"no model {name!r}{hint}")
    build = MODELS[name]
    module: Any = build.func if isinstance(build, partial) else build
    for key in given:
        if key not in module.__dataclass_fields__:
            raise UserError(
                f"model {name} has no {key}: unset model.{key}, or choose another model"
            )
    return build(**given)


def variable_shapes(model: nn.Module) -> Any:
    """Shapes and types of the model's variables, without computing any."""
    images = jax.ShapeDtypeStruct((1, *IMAGE_SHAPE), jnp.float32)
    return nn.unbox(jax.eval_shape(partial(model.init, train=False), jax.random.key(0), images))


def takes(model: nn.Module, image_size: int) -> bool:
    """Whether the network, with its variables for `IMAGE_SHAPE`, also takes square images of so
    many pixels along a side."""
    images = jax.ShapeDtypeStruct((1, image_size, image_size, IMAGE_SHAPE[2]), jnp.float32)
    try:
        jax.eval_shape(partial(model.apply, train=False), variable_shapes(model), images)
    except Exception:  # whatever a person's own network raises
        return False
    return True


def init_variables(model: nn.Module, key: jax.Array) -> dict[str, Any]:
    """Fresh variables: of the registry's networks in PyTorch's default initialization, of any
    other module as its own initializers say.

    PyTorch's: kernels and the biases beside them are U(±1/√fan_in), which PyTorch's
    `kaiming_uniform_(a=√5)` comes to; BatchNorm starts as the identity, running variances at one.
    All numbers come of one draw, cut up in the order of the layers' names: `model.init` would
    compile a generator for each parameter, which takes a laptop minutes for a ResNet18.
    """
    if not _is_in_the_registry(model):
        return nn.unbox(model.init(key, jnp.zeros((1, *IMAGE_SHAPE)), train=False))
    shapes: dict[tuple[str, ...], Any] = flatten_dict(variable_shapes(model))
    drawn = [path for path in sorted(shapes) if (*path[:-1], "kernel") in shapes]
    ends = list(itertools.accumulate(shapes[path].size for path in drawn))
    numbers = jax.random.uniform(key, (ends[-1],), minval=-1, maxval=1)
    variables = {
        path: (jnp.ones if path[-1] in ("scale", "var") else jnp.zeros)(leaf.shape, leaf.dtype)
        for path, leaf in shapes.items()
    }
    for path, piece in zip(drawn, jnp.split(numbers, ends[:-1]), strict=True):
        fan_in = math.prod(shapes[(*path[:-1], "kernel")].shape[:-1])
        variables[path] = piece.reshape(shapes[path].shape) / math.sqrt(fan_in)
    return unflatten_dict(variables)


def _is_in_the_registry(model: nn.Module) -> bool:
    built = (build.func if isinstance(build, partial) else build for build in MODELS.values())
    return type(model) in built


def match_variables(
    variables: Mapping[str, Any], shapes: Mapping[str, Any], name: str
) -> dict[str, Any]:
    """`variables`, if they are as many, as large and of such types as `shapes`.

    Raises:
      UserError: they are not; `name` is what the message calls them.
    """
    found: dict[tuple[str, ...], Any] = flatten_dict(dict(variables))
    wanted: dict[tuple[str, ...], Any] = flatten_dict(dict(shapes))
    for path in sorted(found.keys() ^ wanted.keys()):
        which = "has none of" if path in wanted else "has, and the network not,"
        raise UserError(f"{name} {which} the weights {'/'.join(path)}: it is of another network")
    for path, leaf in wanted.items():
        array = found[path]
        if array.shape != leaf.shape or array.dtype != leaf.dtype:
            raise UserError(
                f"{name} has {'/'.join(path)} as {array.dtype} {list(array.shape)}, the network as "
                f"{leaf.dtype} {list(leaf.shape)}: it is of another network"
            )
    return {key: variables[key] for key in shapes}


def transfer(fresh: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """`given` variables for those of a network, whose last layer stays `fresh` if its classes are
    others.

    Args:
      fresh: the network's own variables.
      given: of the same network, for as many or other classes.

    Returns:
      Variables in the structure of `fresh`, as NumPy arrays.

    Raises:
      UserError: `given` is of another network.
    """
    own: dict[tuple[str, ...], Any] = flatten_dict(dict(fresh))
    others: dict[tuple[str, ...], Any] = flatten_dict(dict(given))
    differing = [
        path
        for path in sorted(own.keys() | others.keys())
        if path not in own or path not in others or own[path].shape != others[path].shape
    ]
    layers = {path[:-1] for path in differing}
    last = all(
        path in own and path in others and own[path].shape[:-1] == others[path].shape[:-1]
        for path in differing
    )
    if len(layers) > 1 or not last:
        names = ", ".join("/".join(path) for path in differing[:3])
        raise UserError(f"the weights to begin with are of another network: they differ in {names}")
    arrays = {path: np.asarray(leaf) for path, leaf in (own | others).items()}
    arrays |= {path: np.asarray(own[path]) for path in differing}
    return {"batch_stats": {}} | unflatten_dict(arrays)


def count_parameters(params: Any) -> int:
    """Trainable numbers in a tree of arrays or shapes."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
