"""Import a PyTorch ResNet for CIFAR as a run folder."""

import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from cifar_jax import models
from cifar_jax.config import Config, Model, Optimizer, flatten
from cifar_jax.data import cifar10
from cifar_jax.errors import UserError, counted
from cifar_jax.inference.model import TrainedNetwork
from cifar_jax.inference.state_dict import read_state_dict, summarize_keys
from cifar_jax.models.summary import summarize
from cifar_jax.runs.checkpoints import Checkpoints
from cifar_jax.runs.folder import open_run_folder
from cifar_jax.runs.schemas import LayerRow, ModelCard, RunIdentity, parse

MODELS = ("resnet18", "resnet10")
# Mean and standard deviation of each channel over the 50,000 training images, as
# `data.load("cifar10")` computes them.
CIFAR10_MEAN = (0.49139967861519607, 0.48215840839460783, 0.44653091444546567)
CIFAR10_STD = (0.24703223246328201, 0.24348512800005553, 0.2615878417279645)

_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias"}
_LEAVES |= {"mean": "running_mean", "var": "running_var"}
_LAST_LAYERS = ("linear", "fc")
# The first name is from pytorch-cifar (github.com/kuangliu/pytorch-cifar), the second from
# torchvision. Some repositories mix both.
_SPELLINGS = [
    {"shortcut": shortcut, "fc": fc}
    for shortcut in ("shortcut", "downsample")
    for fc in _LAST_LAYERS
]


_PREFIXES = re.compile(r"^((model|net|backbone)\.)+")
"""Prefixes of names that training scripts often use."""


class Imported(NamedTuple):
    """An imported network."""

    network: TrainedNetwork
    key: str
    """Keys of the file that lead to the state dict. Empty: no keys."""
    ignored: tuple[str, ...]
    """What the file holds next to the network: other state dicts and other tensors."""


class _State(NamedTuple):
    """A training state with weights only, as a checkpoint stores it."""

    step: jax.Array
    epoch: jax.Array
    params: Any
    batch_stats: Any


def import_torch(
    file: Path,
    name: str,
    folder: Path,
    *,
    classes: Sequence[str] | None = None,
    mean: Sequence[float] = CIFAR10_MEAN,
    std: Sequence[float] = CIFAR10_STD,
    stem_pool: bool = False,
    image_size: int = models.IMAGE_SHAPE[0],
) -> Imported:
    """Convert a PyTorch state dict to a run folder.

    Args:
      file: a file of `torch.save` or a safetensors file with the state dict. Layers must have the
        names of pytorch-cifar or torchvision.
      name: name of the network, one of `MODELS`.
      folder: the run folder, which must not exist. It is written completely or not at all.
      classes: names of the classes in the order of the logits. The default is CIFAR-10's classes.
      mean, std: values that normalized each channel of the training images, for pixels in 0..1.
      stem_pool: whether the network has 3×3 max-pooling with stride 2 after its first layer. The
        weights do not show this.
      image_size: height and width of the training images. The weights do not show this.

    Raises:
      UserError: the file contains no state dict or another network, the number of classes is wrong,
        or the folder already exists.
    """
    if name not in MODELS:
        raise UserError(f"--model must be {' or '.join(MODELS)}, not {name!r}")
    if folder.exists():
        raise UserError(f"{folder} already exists: choose another --workdir")
    found = read_state_dict(file)
    tensors, ignored = _select_network(found.tensors, name, file)
    bias = tensors.get("linear.bias", tensors.get("fc.bias", np.zeros(2)))
    if (outputs := bias.size) < 2:
        raise UserError(f"{file} has {counted(outputs, 'output')}: a classifier needs at least two")
    arguments: dict[str, Any] = {"stem_pool": True} if stem_pool else {}
    module = models.create(name, num_classes=outputs, **arguments)
    variables = _variables(tensors, models.variable_shapes(module), name, file)
    named = f"--classes names {len(classes)}" if classes else "their names are unknown"
    classes = tuple(classes or cifar10.CLASSES)
    if outputs != len(classes):
        raise UserError(
            f"{file} has {counted(outputs, 'class', 'classes')}, but {named}: give {outputs} "
            "names with --classes"
        )
    for option, values, allowed in (
        ("--mean", mean, all(0 <= value <= 1 for value in mean)),
        ("--std", std, all(0 < value <= 1 for value in std)),
    ):
        if len(values) != 3 or not allowed:
            sign = ">=" if option == "--mean" else ">"
            raise UserError(
                f"{option} must be three numbers {sign} 0 and <= 1, one for each color channel, "
                f"not {', '.join(f'{value:g}' for value in values)}"
            )
    experiment = f"{name}-imported"
    card = parse(
        {
            "experiment": experiment,
            "seed": 0,
            "model": {"name": name, "num_classes": len(classes), "arguments": arguments},
            "precision": "float32",
            "classes": list(classes),
            "input_shape": list(models.image_shape(image_size)),
            "mean": list(mean),
            "std": list(std),
            "layers": [LayerRow(**vars(layer)) for layer in summarize(module, image_size)],
            "imported_from": file.name,
        },
        ModelCard,
        "--classes, --mean and --std",
    )
    network = TrainedNetwork(card, variables, file)
    model = Model(name=name, arguments=dict(arguments))
    config = Config(model=model, epochs=1, batch_size=128, optimizer=Optimizer())
    identity = RunIdentity(experiment=experiment, seed=0, overrides={}, settings=flatten(config))
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as temporary:
        draft = Path(temporary) / "run"
        with (
            open_run_folder(draft, identity, fresh=False, extend=False) as run,
            Checkpoints(run.checkpoints, keep=1) as checkpoints,
        ):
            run.write_card(card)
            zero = jnp.int32(0)
            state = _State(zero, zero, variables["params"], variables["batch_stats"])
            checkpoints.save(state, end_of_epoch=True)
        draft.rename(folder)
    others = (f"the state dict {key}" for key in found.others)
    return Imported(network, found.key, (*others, *ignored))


def _select_network(
    tensors: Mapping[str, np.ndarray], model: str, file: Path
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Return the tensors of the network without their prefix, and the names of all other tensors.

    A training script may store a loss, a metric or a normalization layer next to the network.
    """
    stems = [name.removesuffix("conv1.weight") for name in tensors if name.endswith("conv1.weight")]
    prefixes = [
        stem for stem in stems if any(f"{stem}{last}.weight" in tensors for last in _LAST_LAYERS)
    ]
    if len(prefixes) > 1:
        names = ", ".join(f"`{prefix}conv1.weight`" for prefix in prefixes)
        raise UserError(
            f"{file} holds several networks, with the first layers {names}: save the weights of "
            "one of them"
        )
    if prefixes:
        (prefix,) = prefixes
        selected = {
            name.removeprefix(prefix): array
            for name, array in tensors.items()
            if name.startswith(prefix)
        }
        return selected, [name for name in tensors if not name.startswith(prefix)]
    # The last layer may have another prefix than the other layers, as in `backbone.` and `fc.`.
    shortened = {_PREFIXES.sub("", name): array for name, array in tensors.items()}
    if len(shortened) < len(tensors) or not any(f"{n}.weight" in shortened for n in _LAST_LAYERS):
        raise UserError(
            f"{file} has no last layer `linear` or `fc` next to a first layer `conv1`, so it is "
            f"not a {model} of pytorch-cifar or torchvision; it holds {summarize_keys(tensors)}"
        )
    return shortened, []


def _variables(
    tensors: Mapping[str, np.ndarray], shapes: Any, model: str, file: Path
) -> dict[str, Any]:
    """Convert the names and layouts of PyTorch tensors to those of Flax variables.

    Raises:
      UserError: a tensor is missing or unexpected, or has another shape or type, or the values do
        not come from training.
    """
    expected: dict[tuple[str, ...], Any] = flatten_dict(shapes)
    spellings = [
        {path: _torch_name(path, spelling) for path in expected} for spelling in _SPELLINGS
    ]
    # Use the spelling with the most matching names. Error messages use the same spelling.
    names = max(spellings, key=lambda names: len(set(names.values()) & tensors.keys()))
    missing = [name for name in names.values() if name not in tensors]
    extra = sorted(tensors.keys() - set(names.values()))
    if missing or extra:
        what = f"lacks `{missing[0]}`" if missing else f"has an unexpected `{extra[0]}`"
        advice = "Choose the --model that was trained."
        if not extra and all("running_" in name for name in missing):
            advice = "Save model.state_dict(), which holds the statistics of BatchNorm."
        raise UserError(
            f"{file} does not hold the weights of {model}: it {what}. It contains "
            f"{summarize_keys(tensors)}. {advice}"
        )
    for path, name in names.items():
        _check_tensor(name, tensors[name], _layout_shape(expected[path].shape), model, file)
    return unflatten_dict({path: _layout(tensors[name]) for path, name in names.items()})


def _check_tensor(
    name: str, array: np.ndarray, shape: tuple[int, ...], model: str, file: Path
) -> None:
    """Raise if a tensor has another shape or type than the network, or values without training."""
    if array.shape != shape:
        raise UserError(
            f"{file} holds another network than {model}: {name} is {list(array.shape)}, and "
            f"{model} needs {list(shape)}. Only a {model} with a 3×3 first convolution and the "
            "usual widths can be imported."
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


def _torch_name(path: tuple[str, ...], spelling: Mapping[str, str]) -> str:
    """Return the PyTorch name of a Flax variable.

    For example, `("params", "stage2_block1", "conv1", "kernel")` is `layer2.0.conv1.weight`.
    """
    names = []
    for part in path[1:-1]:
        if block := re.fullmatch(r"stage(\d)_block(\d)", part):
            names.append(f"layer{block[1]}.{int(block[2]) - 1}")
        elif shortcut := re.fullmatch(r"shortcut_(conv|bn)", part):
            names.append(f"{spelling['shortcut']}.{int(shortcut[1] == 'bn')}")
        else:
            names.append(spelling.get(part, part))
    return ".".join([*names, _LEAVES[path[-1]]])


def _layout(array: np.ndarray) -> np.ndarray:
    """Transpose a convolution kernel from OIHW to HWIO, or a matrix from [out, in] to [in, out]."""
    return np.ascontiguousarray(array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T)


def _layout_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return PyTorch's shape of a Flax array: the inverse of `_layout`."""
    return (*shape[:1:-1], *shape[:2]) if len(shape) == 4 else shape[::-1]
