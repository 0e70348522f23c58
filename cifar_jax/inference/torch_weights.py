"""Import the weights of a PyTorch network as a run folder."""

import json
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
from cifar_jax.errors import UserError, counted
from cifar_jax.inference import torch_names
from cifar_jax.inference.model import TrainedNetwork
from cifar_jax.inference.state_dict import is_safetensors, read_state_dict, summarize_keys
from cifar_jax.models.summary import summarize
from cifar_jax.runs.checkpoints import Checkpoints
from cifar_jax.runs.folder import open_run_folder
from cifar_jax.runs.schemas import LayerRow, ModelCard, NetworkCard, RunIdentity, dump, parse

# Mean and standard deviation of each channel over the 50,000 training images, as
# `data.load("cifar10")` computes them.
CIFAR10_MEAN = (0.49139967861519607, 0.48215840839460783, 0.44653091444546567)
CIFAR10_STD = (0.24703223246328201, 0.24348512800005553, 0.2615878417279645)


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
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    stem_pool: bool = False,
    image_size: int | None = None,
) -> TrainedNetwork:
    """Convert a PyTorch state dict to a run folder, and return the network.

    If the file is from `cifar-jax export --to torch`, its model card has the defaults of the
    arguments below.

    Args:
      file: a file of `torch.save` or a safetensors file with the state dict. Layers must have the
        names that `torch_names` describes.
      name: name of a network of the package.
      folder: the run folder, which must not exist. It is written completely or not at all.
      classes: names of the classes in the order of the logits. The default is CIFAR-10's classes.
      mean, std: values that normalized each channel of the training images, for pixels in 0..1. The
        default is CIFAR-10's values.
      stem_pool: whether the network has 3×3 max-pooling with stride 2 after its first layer. The
        weights do not show this.
      image_size: height and width of the training images. The weights do not show this. The default
        is 32.

    Raises:
      UserError: the file contains no state dict or another network, the number of classes is wrong,
        or the folder already exists.
    """
    if name not in models.MODELS:
        raise UserError(f"--model must be {', '.join(models.MODELS)}, not {name!r}")
    if folder.exists():
        raise UserError(f"{folder} already exists: choose another --workdir")
    tensors = _without_prefix(read_state_dict(file))
    origin = exported_card(file)
    if origin and origin.model.name != name:
        raise UserError(f"{file} is a {origin.model.name}: add --model {origin.model.name}")
    last = torch_names.last_layers(name, models.variable_shapes(models.create(name)))
    heads = [tensors[f"{layer}.weight"] for layer in last if f"{layer}.weight" in tensors]
    if not heads or heads[0].ndim != 2:
        source = " of pytorch-cifar or torchvision" if name in torch_names.RESNETS else ""
        raise UserError(
            f"{file} has no last layer {' or '.join(f'`{layer}`' for layer in last)}, so it is not "
            f"a {name}{source}; it holds {summarize_keys(tensors)}"
        )
    (head, *_) = heads
    if origin:
        classes, mean, std = classes or origin.classes, mean or origin.mean, std or origin.std
        image_size = image_size or origin.input_shape[0]
    mean, std = mean or CIFAR10_MEAN, std or CIFAR10_STD
    image_size = image_size or models.IMAGE_SHAPE[0]
    inherited = {"precision": "float32"}
    if origin:
        kept = ("precision", "center_crop", "white", "tta")
        inherited = {name: value for name, value in dump(origin).items() if name in kept}
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
    network_card = origin.model if origin else NetworkCard(name=name, num_classes=len(classes))
    arguments = network_card.arguments | ({"stem_pool": True} if stem_pool else {})
    options = {"dropout": network_card.dropout, "pooling": network_card.pooling}
    module = models.create(name, num_classes=len(classes), **options, **arguments)
    shapes = models.variable_shapes(module, image_size)
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
    variables = torch_names.from_torch(name, tensors, shapes, file)
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
    return network


def exported_card(file: Path) -> ModelCard | None:
    """Return the model card in a file of `cifar-jax export --to torch`, else None.

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


def _without_prefix(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Remove a prefix such as `encoder.` if all names begin with it."""
    stems = [name for name in tensors if name.endswith("conv1.weight")]
    prefix = min(stems, key=len, default="").removesuffix("conv1.weight")
    if not all(name.startswith(prefix) for name in tensors):
        return dict(tensors)
    return {name.removeprefix(prefix): array for name, array in tensors.items()}
