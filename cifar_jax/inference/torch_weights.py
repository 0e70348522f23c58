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
# The first name is from pytorch-cifar (github.com/kuangliu/pytorch-cifar), the second from
# torchvision. Some repositories mix both.
_SPELLINGS = [
    {"shortcut": shortcut, "fc": fc}
    for shortcut in ("shortcut", "downsample")
    for fc in ("linear", "fc")
]


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
) -> TrainedNetwork:
    """Convert a PyTorch state dict to a run folder, and return the network.

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
    tensors = _without_prefix(read_state_dict(file))
    head = tensors.get("linear.weight", tensors.get("fc.weight"))
    if head is None or head.ndim != 2:
        raise UserError(
            f"{file} has no last layer `linear` or `fc`, so it is not a {name} of pytorch-cifar or "
            f"torchvision; it holds {summarize_keys(tensors)}"
        )
    named = f"--classes names {len(classes)}" if classes else "their names are unknown"
    classes = tuple(classes or cifar10.CLASSES)
    if len(head) != len(classes):
        raise UserError(
            f"{file} has {counted(len(head), 'class', 'classes')}, but {named}: give {len(head)} "
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
    arguments: dict[str, Any] = {"stem_pool": True} if stem_pool else {}
    module = models.create(name, num_classes=len(classes), **arguments)
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
    variables = _variables(tensors, models.variable_shapes(module), file)
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
    return network


def _without_prefix(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Remove a prefix such as `encoder.` if all names begin with it."""
    stems = [name for name in tensors if name.endswith("conv1.weight")]
    prefix = min(stems, key=len, default="").removesuffix("conv1.weight")
    if not all(name.startswith(prefix) for name in tensors):
        return dict(tensors)
    return {name.removeprefix(prefix): array for name, array in tensors.items()}


def _variables(tensors: Mapping[str, np.ndarray], shapes: Any, file: Path) -> dict[str, Any]:
    """Convert the names and layouts of PyTorch tensors to those of Flax variables."""
    paths = list(flatten_dict(shapes))
    spellings = [{path: _torch_name(path, spelling) for path in paths} for spelling in _SPELLINGS]
    # Use the spelling with the most matching names. Error messages use the same spelling.
    names = max(spellings, key=lambda names: len(set(names.values()) & tensors.keys()))
    missing = [name for name in names.values() if name not in tensors]
    extra = sorted(tensors.keys() - set(names.values()))
    if missing or extra:
        what = f"lacks `{missing[0]}`" if missing else f"has an unexpected `{extra[0]}`"
        raise UserError(
            f"{file} does not hold the weights of this --model: it {what}. It contains "
            f"{summarize_keys(tensors)}. Choose the --model that was trained."
        )
    return unflatten_dict({path: _layout(tensors[name]) for path, name in names.items()})


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
