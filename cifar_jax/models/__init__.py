"""Create networks by name, initialize their variables, and transfer pretrained weights."""

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

from cifar_jax.errors import UserError, nearest
from cifar_jax.models.basic import Basic
from cifar_jax.models.custom import IMAGE_SHAPE, CustomModel, image_shape, validate_options
from cifar_jax.models.net import Net, NetBNGAP
from cifar_jax.models.resnet import ResNet10, ResNet10Separable, ResNet18
from cifar_jax.models.speednet import SpeedNet

__all__ = [
    "IMAGE_SHAPE",
    "MODELS",
    "PAPER_PARAMETERS",
    "CustomModel",
    "accepts_size",
    "check_custom_name",
    "count_parameters",
    "create",
    "image_shape",
    "init_variables",
    "match_variables",
    "transfer",
    "variable_shapes",
]

MODELS: dict[str, Callable[..., nn.Module]] = {
    "basic": Basic,
    "net": Net,
    "net-bn-gap": NetBNGAP,
    "net-attention": partial(NetBNGAP, attention=True),
    "net-inception": partial(NetBNGAP, inception=True),
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
"""Number of trainable parameters that the paper states for each network."""


def check_custom_name(name: str, file: Any) -> None:
    """Raise UserError if the network of an experiment file has the name of a package's network."""
    if name in MODELS:
        raise UserError(
            f"{file or 'the experiment file'} defines a MODEL, but its CONFIG names the built-in "
            f"network {name!r}: use another name in CONFIG, such as Model(name='mine')"
        )


def create(name: str, custom: CustomModel | None = None, /, **options: Any) -> nn.Module:
    """Create a network by name.

    Args:
      name: a key of `MODELS`, or the name of the custom model.
      custom: a model that an experiment file defines. If given, `name` must not be in `MODELS`.
      **options: fields of the module, such as `num_classes`, `dropout`, `pooling` or `dtype`. If a
        value is None, the module's default is used.

    Raises:
      UserError: the name is unknown, the network lacks an option, or the custom model cannot be
        trained.
    """
    options = {key: value for key, value in options.items() if value is not None}
    if custom:
        if name in MODELS:
            code = custom.file or "the given model"
            raise UserError(
                f"the run uses the built-in network {name}, so the code in {code} is not needed: "
                "leave out the code"
            )
        return custom.build(name, **options)
    if name not in MODELS:
        hint = nearest(name, MODELS) or f"; choose from {', '.join(MODELS)}"
        raise UserError(f"there is no model {name!r}{hint}")
    build = MODELS[name]
    validate_options(f"model {name}", _module_class(build), options)
    return build(**options)


def variable_shapes(model: nn.Module, image_size: int = IMAGE_SHAPE[0]) -> Any:
    """Return the shapes and types of the model's variables, without computing the variables.

    Args:
      model: the network.
      image_size: height and width of the images in pixels.
    """
    images = jax.ShapeDtypeStruct((1, *image_shape(image_size)), jnp.float32)
    return nn.unbox(jax.eval_shape(partial(model.init, train=False), jax.random.key(0), images))


def accepts_size(model: nn.Module, image_size: int, initial_size: int = IMAGE_SHAPE[0]) -> bool:
    """Return whether a model with variables for one image size also accepts another size.

    Args:
      model: the network.
      image_size: height and width of the images in pixels.
      initial_size: height and width of the images with which the variables are initialized.
    """
    images = jax.ShapeDtypeStruct((1, *image_shape(image_size)), jnp.float32)
    try:
        shapes = variable_shapes(model, initial_size)
        jax.eval_shape(partial(model.apply, train=False), shapes, images)
    except Exception:  # A custom model may raise any exception.
        return False
    return True


def init_variables(
    model: nn.Module, key: jax.Array, image_size: int = IMAGE_SHAPE[0]
) -> dict[str, Any]:
    """Return the initial variables of a network for square images of `image_size` pixels.

    The package's networks and their subclasses use PyTorch's default initialization. Kernels, and
    biases of layers with a kernel, are uniform between -1/√fan_in and 1/√fan_in
    (`kaiming_uniform_(a=√5)` in PyTorch). BatchNorm starts as the identity, with running means of
    zero and running variances of one. If a subclass adds parameters with other names, these
    parameters use the initializers of the subclass. All other modules use their own initializers.

    The random numbers of all layers are drawn at once, in the order of the layer names.
    `model.init` would compile one generator for each parameter, which takes minutes for ResNet18 on
    a laptop.
    """
    package = tuple(_module_class(build) for build in MODELS.values())
    if not isinstance(model, package):
        return _module_init(model, key, image_size)
    shapes: dict[tuple[str, ...], Any] = flatten_dict(variable_shapes(model, image_size))
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
    added = [path for path in shapes if path[-1] not in ("kernel", "bias", "scale", "mean", "var")]
    if added:
        own = flatten_dict(_module_init(model, key, image_size))
        variables |= {path: own[path] for path in added}
    return unflatten_dict(variables)


_REMEDY = (
    "If you use --code, name the file that the weights were trained with. Otherwise restore the "
    "weights from a backup."
)


def match_variables(
    variables: Mapping[str, Any], shapes: Mapping[str, Any], name: str
) -> dict[str, Any]:
    """Check that variables have the expected names, shapes and types, and return them.

    Args:
      variables: the arrays of each collection, `params` and `batch_stats`.
      shapes: the expected shapes and types, as `variable_shapes` returns them.
      name: name of the file or folder with the variables, for the error message.

    Raises:
      UserError: the variables belong to another network.
    """
    actual: dict[tuple[str, ...], Any] = flatten_dict(dict(variables))
    expected: dict[tuple[str, ...], Any] = flatten_dict(dict(shapes))
    for path in sorted(actual.keys() ^ expected.keys()):
        parameter = "/".join(path)
        problem = "lack" if path in expected else "have a parameter that the network lacks:"
        raise UserError(f"the weights in {name} {problem} {parameter}. {_REMEDY}")
    for path, leaf in expected.items():
        array = actual[path]
        if array.shape != leaf.shape or array.dtype != leaf.dtype:
            raise UserError(
                f"the weights in {name} do not fit the network: {'/'.join(path)} is {array.dtype} "
                f"{list(array.shape)}, but the network needs {leaf.dtype} {list(leaf.shape)}. "
                f"{_REMEDY}"
            )
    return {collection: variables[collection] for collection in shapes}


def transfer(initial: Mapping[str, Any], pretrained: Mapping[str, Any]) -> dict[str, Any]:
    """Return the variables with which a network starts from pretrained weights.

    If the numbers of classes differ, the last layer keeps its initial variables.

    Args:
      initial: variables of the network to train.
      pretrained: variables of the same network, with any number of classes.

    Returns:
      Variables in the structure of `initial`, as NumPy arrays.

    Raises:
      UserError: the pretrained variables belong to another network.
    """
    target: dict[tuple[str, ...], Any] = flatten_dict(dict(initial))
    source: dict[tuple[str, ...], Any] = flatten_dict(dict(pretrained))
    differing = [
        path
        for path in sorted(target.keys() | source.keys())
        if path not in target or path not in source or target[path].shape != source[path].shape
    ]
    only_outputs_differ = all(
        path in target and path in source and target[path].shape[:-1] == source[path].shape[:-1]
        for path in differing
    )
    if len({path[:-1] for path in differing}) > 1 or not only_outputs_differ:
        names = ", ".join("/".join(path) for path in differing[:3])
        raise UserError(
            f"the weights of train.init_from are from another network ({names} differ). Choose "
            "weights of the same network, or leave out train.init_from."
        )
    arrays = {path: np.asarray(leaf) for path, leaf in (target | source).items()}
    arrays |= {path: np.asarray(target[path]) for path in differing}
    return {"batch_stats": {}} | unflatten_dict(arrays)


def count_parameters(params: Any) -> int:
    """Return the total number of elements in a tree of arrays or shapes."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def _module_class(build: Callable[..., nn.Module]) -> Any:
    return build.func if isinstance(build, partial) else build


def _module_init(model: nn.Module, key: jax.Array, image_size: int) -> dict[str, Any]:
    images = jnp.zeros((1, *image_shape(image_size)))
    return nn.unbox(model.init(key, images, train=False))
