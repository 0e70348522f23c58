"""The model card: all that is needed to use a model without the run that made it.

Run folders hold it as `model.json`, exports carry it inside. It is JSON:

    version             1
    experiment, seed    of the run
    model               the network: name, num_classes, and its options
    precision           compute type
    classes             in the order of the logits
    input_shape         [32, 32, 3]: uint8 images, red, green, blue
    data                what it was trained on: name, and digests where they are known
    mean, std           a channel, of 0..1: the network takes (image / 255 - mean) / std
    tta           how images were looked at when they were tested: flip, shift, unsure
    step, epoch         of the weights
    test_accuracy       in percent, where these weights were measured, else null
    git_commit          of the run's code, where it is known
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cifar_jax import data
from cifar_jax.config import Model, TTAConfig
from cifar_jax.data import cifar10
from cifar_jax.errors import UserError
from cifar_jax.files import read_json
from cifar_jax.models import IMAGE_SHAPE

VERSION = 1

# Over the 50,000 training images, as `data.load("cifar10")` computes them.
CIFAR10_MEAN = (0.49139967861519607, 0.48215840839460783, 0.44653091444546567)
CIFAR10_STD = (0.24703223246328201, 0.24348512800005553, 0.2615878417279645)


def of_run(path: Path, identity: Mapping[str, Any]) -> dict[str, Any]:
    """The card of the run in folder `path`, whose config.json is `identity`.

    Of a run that was made before there were cards it follows from the settings.

    Raises:
      UserError: the card or the settings are damaged, or the data set is unknown.
    """
    settings = identity["config"]
    known = path / "model.json"
    card = read_json(known) if known.exists() else _from_settings(path, identity)
    if isinstance(card, dict):
        card = {"precision": settings.get("train.precision", "float32")} | card
    return checked(card, str(known))


def _from_settings(path: Path, identity: Mapping[str, Any]) -> dict[str, Any]:
    settings = identity["config"]
    dataset = settings.get("data.dataset")
    if dataset == "cifar10":
        classes, mean, std = cifar10.CLASSES, CIFAR10_MEAN, CIFAR10_STD
    elif dataset == "digits":
        digits = data.load("digits")
        classes, mean, std = digits.classes, digits.mean, digits.std
    else:
        raise UserError(f"{path} has no model.json, and its data set {dataset!r} is unknown")
    model = {
        name.removeprefix("model."): value
        for name, value in settings.items()
        if name.startswith("model.")
    }
    return {
        "version": VERSION,
        "experiment": identity["experiment"],
        "seed": identity["seed"],
        "model": model | {"num_classes": len(classes)},
        "classes": list(classes),
        "input_shape": list(IMAGE_SHAPE),
        "mean": list(mean),
        "std": list(std),
        "data": {"name": dataset},
    }


def checked(card: Any, name: str) -> dict[str, Any]:
    """The card, if it is one; `name` is what messages call it.

    Raises:
      UserError: it is damaged, or of a version that is not known.
    """

    def require(holds: bool, what: str) -> None:
        if not holds:
            raise UserError(f"{name} is no model card: {what}")

    require(isinstance(card, dict), "it holds no object")
    require(card.get("version") == VERSION, f"its version is {card.get('version')!r}, not 1")
    model, classes = card.get("model"), card.get("classes")
    require(isinstance(model, dict) and isinstance(model.get("name"), str), "it names no network")
    require(
        isinstance(classes, list) and classes != [] and all(isinstance(c, str) for c in classes),
        "it has no classes",
    )
    require(
        model.get("num_classes") == len(classes), "its classes are not as many as the network's"
    )
    require(card.get("input_shape") == list(IMAGE_SHAPE), "its input_shape is not [32, 32, 3]")
    for field in ("mean", "std"):
        values = card.get(field)
        require(
            isinstance(values, list)
            and len(values) == 3
            and all(isinstance(v, float | int) for v in values),
            f"its {field} is not three numbers",
        )
    # NaN is in no range either.
    require(all(0 <= v <= 1 for v in card["mean"]), "its mean is not of pixels from 0 to 1")
    require(all(0 < v <= 1 for v in card["std"]), "its std is not of pixels from 0 to 1")
    require(
        isinstance(card.get("experiment"), str)
        and not re.search(r"[/\\\0]", card["experiment"])
        and type(card.get("seed")) is int,
        "it names no experiment and seed",
    )
    views = card.get("tta", {})
    require(isinstance(views, dict), "its tta is no object")
    options = {option: value for option, value in model.items() if option != "num_classes"}
    try:
        Model(**options)
        TTAConfig(**views)
    except (UserError, TypeError) as error:
        require(False, str(error))
    require(isinstance(card.get("data", {}), dict), "its data is no object")
    require(card.get("precision") in ("float32", "bfloat16"), "its precision is unknown")
    return card
