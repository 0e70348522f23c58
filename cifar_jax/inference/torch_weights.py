"""A PyTorch ResNet for CIFAR becomes a run's folder."""

import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from cifar_jax import models
from cifar_jax.config import Config, Data, Model, Optimizer, flatten
from cifar_jax.data import cifar10
from cifar_jax.errors import UserError
from cifar_jax.files import write_json
from cifar_jax.inference import card as cards
from cifar_jax.inference import torch_file
from cifar_jax.inference.model import TrainedNetwork, load_run
from cifar_jax.models import IMAGE_SHAPE
from cifar_jax.runs.checkpoints import Checkpoints

MODELS = ("resnet18", "resnet10")
_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}
# What is called differently in pytorch-cifar (github.com/kuangliu/pytorch-cifar) and torchvision.
_SPELLINGS = ({"shortcut": "shortcut", "fc": "linear"}, {"shortcut": "downsample", "fc": "fc"})
_PREFIXES = re.compile(r"^(module\.|_orig_mod\.)+")


class _State(NamedTuple):
    """What a checkpoint of weights alone holds."""

    step: jax.Array
    params: Any
    batch_stats: Any


def import_torch(
    file: Path,
    name: str,
    folder: Path,
    *,
    classes: Sequence[str] | None = None,
    mean: Sequence[float] = cards.CIFAR10_MEAN,
    std: Sequence[float] = cards.CIFAR10_STD,
) -> TrainedNetwork:
    """Make a run's folder of a state dict, and load it.

    Args:
      file: of `torch.save(model.state_dict(), …)`, or safetensors; layers named as in pytorch-cifar
        or torchvision.
      name: one of MODELS.
      folder: appears whole or not at all.
      classes: in the order of the logits; without them there are to be CIFAR-10's ten.
      mean, std: a channel, of 0..1, by which its images were normalized.

    Raises:
      UserError: the file is no state dict, or one of another network; classes that are not as many
        as its logits; a folder that is there.
    """
    if name not in MODELS:
        raise UserError(f"only {' and '.join(MODELS)} can be imported, not {name!r}")
    if folder.exists():
        raise UserError(f"{folder} exists: choose another --workdir")
    tensors = {
        _PREFIXES.sub("", key): value
        for key, value in torch_file.read(file).items()
        if not key.endswith("num_batches_tracked")
    }
    head = tensors.get("linear.weight", tensors.get("fc.weight"))
    if head is None or head.ndim != 2:
        raise UserError(f"{file} has no last layer `linear` or `fc`: it is of another network")
    classes = tuple(classes or cifar10.CLASSES)
    if len(head) != len(classes):
        raise UserError(
            f"{file} tells {len(head)} classes apart, not {len(classes)}: name them with --classes"
        )
    config = Config(
        model=Model(name=name), epochs=1, batch_size=128, optimizer=Optimizer(), data=Data()
    )
    identity = {
        "experiment": f"{name}-imported",
        "seed": 0,
        "overrides": {},
        "config": flatten(config),
    }
    card = {
        "version": cards.VERSION,
        "experiment": identity["experiment"],
        "seed": 0,
        "model": {"name": name, "num_classes": len(classes)},
        "precision": "float32",
        "classes": list(classes),
        "input_shape": list(IMAGE_SHAPE),
        "mean": list(mean),
        "std": list(std),
        "imported_from": file.name,
    }
    cards.checked(card, "what --mean, --std and --classes come to")
    module = models.create(name, num_classes=len(classes))
    variables = _variables(tensors, models.variable_shapes(module), file)
    TrainedNetwork(card, variables, str(file))  # raises where shapes differ
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as error:
        raise UserError(f"{folder} cannot be made: {error.strerror or error}") from None
    try:
        with Checkpoints(beside / "checkpoints") as checkpoints:
            checkpoints.save(_State(jnp.int32(0), variables["params"], variables["batch_stats"]))
        write_json(beside / "model.json", card)
        write_json(beside / "config.json", identity)
        beside.chmod(0o755)
        beside.rename(folder)
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror or error}") from None
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return load_run(folder)


def _variables(tensors: Mapping[str, np.ndarray], shapes: Any, file: Path) -> dict[str, Any]:
    """In our names and layouts: OIHW to HWIO, [out, in] to [in, out]."""
    paths = list(flatten_dict(shapes))
    wanted = [{path: _torch_name(path, spelling) for path in paths} for spelling in _SPELLINGS]
    # The spelling of which most is there: what then is missing is told in it.
    names = max(wanted, key=lambda names: len(set(names.values()) & tensors.keys()))
    missing = [name for name in names.values() if name not in tensors]
    extra = sorted(tensors.keys() - set(names.values()))
    if missing or extra:
        what = f"has no {missing[0]}" if missing else f"has {extra[0]}, which the network has not"
        raise UserError(f"{file} {what}: it is of another network")
    return unflatten_dict({path: _layout(tensors[name]) for path, name in names.items()})


def _torch_name(path: tuple[str, ...], spelling: Mapping[str, str]) -> str:
    """`("params", "stage2_block1", "conv1", "kernel")` is `layer2.0.conv1.weight`."""
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
    if array.dtype in (np.float16, np.float64):
        array = array.astype(np.float32)
    if array.ndim == 4:
        return np.ascontiguousarray(array.transpose(2, 3, 1, 0))
    return np.ascontiguousarray(array.T)
