"""Import the weights of a PyTorch network as a run folder."""

import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import safe_open

from cifar_jax import models
from cifar_jax.config import Config, Model, Optimizer, flatten
from cifar_jax.data import cifar10
from cifar_jax.data.arrays import check_classes
from cifar_jax.errors import UserError, counted
from cifar_jax.inference import torch_names
from cifar_jax.inference.model import TrainedNetwork
from cifar_jax.inference.state_dict import is_safetensors, read_state_dict, summarize_keys
from cifar_jax.models.summary import summarize
from cifar_jax.runs.checkpoints import Checkpoints
from cifar_jax.runs.folder import open_run_folder
from cifar_jax.runs.schemas import LayerRow, ModelCard, NetworkCard, RunIdentity, dump, parse

# Mean and standard deviation of each channel over the 50,000 training images of CIFAR-10.
CIFAR10_MEAN = (0.49139967861519607, 0.48215840839460783, 0.44653091444546567)
CIFAR10_STD = (0.24703223246328201, 0.24348512800005553, 0.2615878417279645)


_PREFIXES = re.compile(r"^((model|net|backbone)\.)+")
"""Prefixes that training scripts often add to the names of tensors."""


class Imported(NamedTuple):
    """A network that was imported from a PyTorch file."""

    network: TrainedNetwork
    key: str
    """Path of keys to the state dict in the file, such as `ckpt.model`. Empty if the whole file is
    the state dict."""
    ignored: tuple[str, ...]
    """Names of the state dicts and tensors in the file that were not imported."""


class _State(NamedTuple):
    """A training state for checkpoints that contains only weights."""

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
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    stem_pool: bool = False,
    image_size: int | None = None,
) -> Imported:
    """Convert a PyTorch state dict to a run folder.

    A file of `cifar-jax export --to torch` contains a model card. The card then sets the defaults
    of the arguments below.

    Args:
      file: a file of `torch.save` or a safetensors file with the state dict. Layers must have the
        names that `torch_names` describes.
      name: name of a network of the package.
      folder: the run folder, which must not exist. It is written completely or not at all.
      classes: names of the classes in the order of the logits. The default is CIFAR-10's classes.
      mean, std: mean and standard deviation that normalized each channel of the training images,
        for pixel values in 0..1. The default is CIFAR-10's values.
      stem_pool: whether the network has 3×3 max-pooling with stride 2 after its first layer.
      image_size: height and width of the training images in pixels. The default is 32.

    Raises:
      UserError: the file contains no state dict or another network, the number of classes is wrong,
        or the folder already exists.
    """
    if name not in models.MODELS:
        raise UserError(f"--model must be {', '.join(models.MODELS)}, not {name!r}")
    if folder.exists():
        raise UserError(f"{folder} already exists: choose another --workdir")
    found, origin = read_state_dict(file), exported_card(file)
    if origin and origin.model.name != name:
        raise UserError(f"{file} is a {origin.model.name}: add --model {origin.model.name}")
    last_layers = torch_names.last_layers(name)
    tensors, ignored = _select_network(found.tensors, name, last_layers, file)
    names = (f"{layer}.{leaf}" for layer in last_layers for leaf in ("bias", "weight"))
    head = next(tensors[name] for name in names if name in tensors)
    if (outputs := len(head) if head.ndim else 1) < 2:
        raise UserError(f"{file} has {counted(outputs, 'output')}: a classifier needs at least two")
    inherited: dict[str, Any] = {"precision": "float32"}
    network_card = NetworkCard(name=name, num_classes=outputs)
    if origin:
        network_card = origin.model
        kept = ("precision", "center_crop", "white", "tta")
        inherited = {field: value for field, value in dump(origin).items() if field in kept}
        classes, mean, std = classes or origin.classes, mean or origin.mean, std or origin.std
        image_size = image_size or origin.input_shape[0]
    mean, std = mean or CIFAR10_MEAN, std or CIFAR10_STD
    image_size = image_size or models.IMAGE_SHAPE[0]
    arguments = network_card.arguments | ({"stem_pool": True} if stem_pool else {})
    options = {"dropout": network_card.dropout, "pooling": network_card.pooling}
    module = models.create(name, num_classes=outputs, **options, **arguments)
    shapes = models.variable_shapes(module, image_size)
    variables = torch_names.from_torch(name, tensors, shapes, file)
    named = f"--classes names {len(classes)}" if classes else "their names are unknown"
    classes = tuple(classes or cifar10.CLASSES)
    check_classes(classes, "--classes")
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
            "model": dump(network_card) | {"arguments": arguments},
            **inherited,
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
    model = Model(name=name, arguments=dict(arguments), **options)
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


def exported_card(file: Path) -> ModelCard | None:
    """Return the model card in a file of `cifar-jax export --to torch`. None: there is no card.

    Raises:
      UserError: the model card is damaged.
    """
    if not is_safetensors(file):
        return None
    with safe_open(file, framework="numpy") as content:
        text = (content.metadata() or {}).get("card")
    try:
        return text and parse(json.loads(text), ModelCard, file, "Export the model again.")
    except ValueError:
        raise UserError(f"{file} has a damaged model card: export the model again") from None


def _select_network(
    tensors: Mapping[str, np.ndarray], model: str, last_layers: Sequence[str], file: Path
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Return the tensors of a network without their prefix, and the names of all other tensors.

    Other tensors may come from a loss, a metric or a normalization layer of the training script.
    """
    stems = [name.removesuffix("conv1.weight") for name in tensors if name.endswith("conv1.weight")]
    prefixes = [
        stem for stem in stems if any(f"{stem}{last}.weight" in tensors for last in last_layers)
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
    # The last layer may lack the prefix of the other layers, as in `backbone.conv1` and `fc`.
    shortened = {_PREFIXES.sub("", name): array for name, array in tensors.items()}
    if len(shortened) < len(tensors) or not any(f"{n}.weight" in shortened for n in last_layers):
        source = " of pytorch-cifar or torchvision" if model in torch_names.RESNETS else ""
        raise UserError(
            f"{file} has no last layer {' or '.join(f'`{layer}`' for layer in last_layers)} next "
            f"to a first layer `conv1`, so it is not a {model}{source}; it holds "
            f"{summarize_keys(tensors)}"
        )
    return shortened, []
