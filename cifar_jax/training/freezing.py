"""Freeze layers of a pretrained network: keep their weights and BatchNorm statistics fixed."""

import inspect
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from cifar_jax import models
from cifar_jax.errors import UserError, counted

Path = tuple[str, ...]


class Pretrained(NamedTuple):
    """The variables of a trained network, and the names of its classes."""

    variables: Mapping[str, Any]
    classes: tuple[str, ...]


class Frozen(NamedTuple):
    """The frozen parameters and BatchNorm layers of a network."""

    params: frozenset[str] = frozenset()
    """Paths of the frozen parameters, such as `conv1/kernel`."""
    norms: frozenset[str] = frozenset()
    """Paths of the BatchNorm layers with frozen statistics, such as `bn1`."""


def last_layer(
    model: nn.Module,
    image_size: int = models.IMAGE_SHAPE[0],
    remedy: str = "A network with other classes cannot be its pretrained network.",
) -> str:
    """Return the path of the only layer whose shape depends on the number of classes.

    Args:
      model: the network.
      image_size: height and width of the images in pixels.
      remedy: last sentence of the error message.

    Raises:
      UserError: there are several such layers.
    """
    number: int = getattr(model, "num_classes")  # noqa: B009
    networks = [model.clone(num_classes=number + more) for more in (0, 1)]
    shapes = [
        flatten_dict(models.variable_shapes(network, image_size)["params"]) for network in networks
    ]
    layers = {"/".join(path[:-1]) for path, leaf in shapes[0].items() if leaf != shapes[1][path]}
    if len(layers) != 1:
        raise UserError(
            f"the network has no single last layer: the shapes of {counted(len(layers), 'layer')} "
            f"depend on the number of classes. {remedy}"
        )
    return layers.pop()


def frozen(model: nn.Module, freeze: str | None, image_size: int = models.IMAGE_SHAPE[0]) -> Frozen:
    """Return the part of a network that the setting `train.freeze` names.

    Args:
      model: the network.
      freeze: the setting `train.freeze`.
      image_size: height and width of the images in pixels.

    Raises:
      UserError: a pattern matches no layer, or no parameter remains to be trained.
    """
    if freeze is None:
        return Frozen()
    shapes = models.variable_shapes(model, image_size)
    params = {"/".join(path) for path in flatten_dict(shapes["params"])}
    statistics = {"/".join(path) for path in flatten_dict(shapes.get("batch_stats", {}))}
    paths = params | statistics
    if freeze == "backbone":
        remedy = "Name the layers to freeze in train.freeze."
        last = f"{last_layer(model, image_size, remedy)}/"
        chosen = {path for path in paths if not path.startswith(last)}
    else:
        chosen = set()
        for pattern in freeze.split(","):
            matching = {path for path in paths if _matches(path, pattern.strip())}
            if not matching:
                layers = dict.fromkeys(path.partition("/")[0] for path in sorted(paths))
                raise UserError(
                    f"train.freeze: no layer of the network matches {pattern.strip()!r}. The "
                    f"layers are {', '.join(layers)}. To freeze all layers except the last, use "
                    "train.freeze=backbone."
                )
            chosen |= matching
    if not params - chosen:
        raise UserError(
            f"train.freeze={freeze} freezes all layers, so nothing is trained: leave out a layer, "
            "or use train.freeze=backbone"
        )
    norms = frozenset(path.rpartition("/")[0] for path in chosen & statistics)
    _check_inference_mode(model, norms, image_size)
    return Frozen(frozenset(params & chosen), norms)


def inference_mode(norms: frozenset[str]) -> AbstractContextManager[Any]:
    """Return a context in which the given BatchNorm layers are in inference mode.

    In inference mode, a layer normalizes with its running statistics and does not change them.

    Args:
      norms: paths of the layers, such as `stage1_block1/bn1`.
    """
    if not norms:
        return nullcontext()

    def intercept(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        module = context.module
        if context.method_name == "__call__" and "/".join(module.path) in norms:
            # The argument may be given by position or by name.
            bound = inspect.signature(context.orig_method).bind(*args, **kwargs)
            if isinstance(module, nn.BatchNorm):
                # The constructor may have set this argument. Linen then refuses it in the call.
                object.__setattr__(module, "use_running_average", None)
                bound.arguments["use_running_average"] = True
            elif "train" in bound.arguments:
                bound.arguments["train"] = False
            else:
                raise UserError(
                    f"train.freeze cannot freeze the statistics of {'/'.join(module.path)}: the "
                    "layer must be a BatchNorm of cifar_jax or Linen, or take the argument train"
                )
            args, kwargs = bound.args, bound.kwargs
        return call(*args, **kwargs)

    return nn.intercept_methods(intercept)


def start_variables(
    model: nn.Module,
    initial: Mapping[str, Any],
    pretrained: Pretrained,
    classes: tuple[str, ...],
    image_size: int = models.IMAGE_SHAPE[0],
    frozen: frozenset[str] = frozenset(),
) -> dict[str, Any]:
    """Return the variables with which fine-tuning starts, as NumPy arrays.

    Args:
      model: the network to train.
      initial: random variables of the network to train.
      pretrained: the trained network. If its classes differ from `classes`, the last layer keeps
        its random variables.
      classes: names of the classes to train.
      image_size: height and width of the images in pixels.
      frozen: paths of the frozen parameters.

    Raises:
      UserError: the pretrained variables belong to another network, or the last layer is frozen
        although it keeps its random variables.
    """
    variables = models.transfer(initial, pretrained.variables)
    if tuple(pretrained.classes) == tuple(classes):
        return variables
    last = tuple(last_layer(model, image_size).split("/"))
    random: dict[Path, Any] = flatten_dict(dict(initial["params"]))
    new = {path: np.asarray(random[path]) for path in random if path[:-1] == last}
    if frozen >= {"/".join(path) for path in new}:
        raise UserError(
            f"train.freeze freezes the last layer, {'/'.join(last)}, which is new because the "
            "pretrained network has other classes: leave the layer out of train.freeze"
        )
    changed: dict[Path, Any] = flatten_dict(variables["params"]) | new
    return variables | {"params": unflatten_dict(changed)}


def describe(params: Any, part: Frozen) -> str:
    """Return a log line about the frozen part of a network.

    Args:
      params: the parameters of the network, or their shapes.
      part: the frozen part.
    """
    shapes: dict[str, Any] = flatten_dict(params, sep="/")
    fixed = sum(shapes[path].size for path in part.params)
    layers = dict.fromkeys(path.rpartition("/")[0] for path in shapes if path not in part.params)
    norms = counted(len(part.norms), "BatchNorm layer")
    return (
        f"train.freeze keeps {fixed:,} of {models.count_parameters(shapes):,} parameters and the "
        f"statistics of {norms}; trained layers: {', '.join(layers)}"
    )


def _matches(path: str, pattern: str) -> bool:
    """Return whether a pattern matches a path such as `block1/bn1/mean`, or one of its parents."""
    parts = path.split("/")
    return any(fnmatchcase("/".join(parts[:end]), pattern) for end in range(1, len(parts) + 1))


def _check_inference_mode(model: nn.Module, norms: frozenset[str], image_size: int) -> None:
    """Raise UserError if a layer in `norms` cannot be in inference mode."""
    shapes = models.variable_shapes(model, image_size)
    images = jax.ShapeDtypeStruct((2, *models.image_shape(image_size)), jnp.float32)

    def apply(variables: Any, images: jax.Array) -> Any:
        keys = {"dropout": jax.random.key(0)}
        return model.apply(variables, images, train=True, rngs=keys, mutable=["batch_stats"])

    with inference_mode(norms):
        jax.eval_shape(apply, shapes, images)
