"""Convert weights between the names and layouts of this package and of PyTorch.

The weights of these networks have the following names in PyTorch:

resnet18, resnet10   the names of pytorch-cifar (github.com/kuangliu/pytorch-cifar); the names
                     of torchvision and of this package can be read, too
other networks       the names of this package, as in `benchmarks/torch_models.py`
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from cifar_jax.errors import UserError
from cifar_jax.inference.state_dict import summarize_keys

FORMAT = "pt"
"""Value of `format` in the metadata of a safetensors file with PyTorch's names."""

RESNETS = ("resnet18", "resnet10")
"""Networks whose weights are written with the names of pytorch-cifar."""

_Paths = list[tuple[str, ...]]
_Names = dict[tuple[str, ...], str]

_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias"}
_LEAVES |= {"mean": "running_mean", "var": "running_var"}
# PyTorch names of shortcuts and of the last layer. Of each pair, the first name is from
# pytorch-cifar, and the second is from torchvision. Some repositories mix both.
_SPELLINGS = [
    {"shortcut": shortcut, "fc": fc}
    for shortcut in ("shortcut", "downsample")
    for fc in ("linear", "fc")
]
_FLATTENED_CHANNELS = {"basic": 16, "net": 256}
"""Number of channels of the feature map that is flattened before the layer `fc1`, by network.
PyTorch flattens in the order CHW, and this package in the order HWC."""


def to_torch(model: str, variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Return the PyTorch state dict of a network, without the counters `num_batches_tracked`.

    Args:
      model: name of the network.
      variables: arrays of the collections `params` and `batch_stats`.
    """
    arrays: dict[tuple[str, ...], Any] = flatten_dict(dict(variables))
    names = _spellings(model, list(arrays))[0]
    tensors = {}
    for path, name in names.items():
        array = np.asarray(arrays[path])
        if array.ndim == 4:  # HWIO to OIHW
            array = array.transpose(3, 2, 0, 1)
        elif array.ndim == 2:
            if channels := _flattened_channels(model, path):
                side = round((len(array) / channels) ** 0.5)
                array = array.reshape(side, side, channels, -1).transpose(2, 0, 1, 3)
            array = array.reshape(-1, array.shape[-1]).T
        tensors[name] = np.ascontiguousarray(array)
    for scale in _unit_scales(names):
        tensors[scale] = np.ones_like(tensors[scale.replace(".weight", ".bias")])
    return tensors


def from_torch(
    model: str, tensors: Mapping[str, np.ndarray], shapes: Any, file: Path
) -> dict[str, Any]:
    """Return the variables of a network in a PyTorch state dict.

    Args:
      model: name of the network.
      tensors: the state dict, without the counters `num_batches_tracked`.
      shapes: the variables of the network, or their shapes.
      file: name of the file in error messages.

    Raises:
      UserError: a tensor is missing or unexpected, has a wrong shape or type, or has values that a
        trained network cannot have.
    """
    expected: dict[tuple[str, ...], Any] = flatten_dict(dict(shapes))
    # Choose the spelling with the most matching names, also for error messages.
    spellings = _spellings(model, list(expected))
    names = max(spellings, key=lambda names: len(set(names.values()) & tensors.keys()))
    scales = _unit_scales(names)
    missing = [name for name in names.values() if name not in tensors]
    extra = sorted(tensors.keys() - {*names.values(), *scales})
    if missing or extra:
        what = f"lacks `{missing[0]}`" if missing else f"has an unexpected `{extra[0]}`"
        advice = "Choose the --model that was trained."
        if not extra and all("running_" in name for name in missing):
            advice = "Save model.state_dict(), which holds the statistics of BatchNorm."
        raise UserError(
            f"{file} does not hold the weights of {model}: it {what}. It contains "
            f"{summarize_keys(tensors)}. {advice}"
        )
    for scale in scales:
        if scale in tensors and (tensors[scale] != 1).any():
            raise UserError(
                f"{file} has values other than 1 in `{scale}`, but the BatchNorm layers of {model} "
                "have no scale: choose the --model that was trained"
            )
    variables = {}
    for path, name in names.items():
        array = tensors[name]
        _check_tensor(name, array, _torch_shape(expected[path].shape), model, file)
        if array.ndim == 4:  # OIHW to HWIO
            array = array.transpose(2, 3, 1, 0)
        elif array.ndim == 2:
            if channels := _flattened_channels(model, path):
                side = round((array.shape[1] / channels) ** 0.5)
                array = array.reshape(-1, channels, side, side).transpose(0, 2, 3, 1)
            array = array.reshape(len(array), -1).T
        variables[path] = np.ascontiguousarray(array)
    return {"batch_stats": {}} | unflatten_dict(variables)


def last_layers(model: str) -> tuple[str, ...]:
    """Return the names that the last layer of a network may have in PyTorch."""
    if model in RESNETS:
        return "linear", "fc"
    return ("fc",) if model in ("resnet10-separable", "speednet") else ("fc3",)


def _check_tensor(
    name: str, array: np.ndarray, shape: tuple[int, ...], model: str, file: Path
) -> None:
    """Raise UserError if a trained network cannot have a tensor of this shape, type or values."""
    if array.shape != shape:
        advice = "Check --model and --image-size."
        if model in RESNETS:
            advice = (
                f"Only a {model} with a 3×3 first convolution and the usual widths can be imported."
            )
        raise UserError(
            f"{file} holds another network than {model}: {name} is {list(array.shape)}, and "
            f"{model} needs {list(shape)}. {advice}"
        )
    if array.dtype != np.float32:
        raise UserError(
            f"{file} holds {name} as {array.dtype}, not as floating-point numbers: save the "
            "weights of the network before its quantization or conversion"
        )
    if not np.isfinite(array).all():
        raise UserError(
            f"{file} has NaN or infinite values in {name}, so its training diverged: import an "
            "earlier checkpoint"
        )
    if name.endswith("running_var") and array.min() < 0:
        raise UserError(
            f"{file} has a negative variance in {name}, so it is damaged or its weights were "
            "averaged in a wrong way: import another checkpoint"
        )
    if array.ndim > 1 and not array.any():
        raise UserError(
            f"{file} has only zeros in {name}, so it holds no trained weights: import another "
            "checkpoint"
        )


def _spellings(model: str, paths: _Paths) -> list[_Names]:
    """Return the PyTorch names of all variables, once for each possible spelling.

    For example, `("params", "stage2_block1", "conv1", "kernel")` of a ResNet has the name
    `layer2.0.conv1.weight`.
    """
    spellings = []
    for spelling in _SPELLINGS if model in RESNETS else ():
        names = {path: [_torch_layer(part, spelling) for part in path[1:-1]] for path in paths}
        spellings.append(names)
    spellings.append({path: path[1:-1] for path in paths})
    return [
        {path: ".".join([*parts, _LEAVES[path[-1]]]) for path, parts in names.items()}
        for names in spellings
    ]


def _torch_layer(part: str, spelling: Mapping[str, str]) -> str:
    if block := re.fullmatch(r"stage(\d)_block(\d)", part):
        return f"layer{block[1]}.{int(block[2]) - 1}"
    if shortcut := re.fullmatch(r"shortcut_(conv|bn)", part):
        return f"{spelling['shortcut']}.{int(shortcut[1] == 'bn')}"
    return spelling.get(part, part)


def _unit_scales(names: _Names) -> list[str]:
    """Return the PyTorch names of scales of BatchNorm layers that have no scale in this package.

    In PyTorch, all elements of these scales are 1.
    """
    return [
        name.replace(".running_mean", ".weight")
        for path, name in names.items()
        if path[-1] == "mean" and ("params", *path[1:-1], "scale") not in names
    ]


def _torch_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape that a Flax array has in PyTorch."""
    return (*shape[:1:-1], *shape[:2]) if len(shape) == 4 else shape[::-1]


def _flattened_channels(model: str, path: tuple[str, ...]) -> int | None:
    return _FLATTENED_CHANNELS.get(model) if path[-2] == "fc1" else None
