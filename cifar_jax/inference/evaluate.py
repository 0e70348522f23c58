"""Measures a finished or unfinished run over a whole split."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from cifar_jax import data, models
from cifar_jax.config import Config, from_flat, override
from cifar_jax.errors import UserError
from cifar_jax.inference.load import load
from cifar_jax.inference.model import TrainedNetwork, load_run
from cifar_jax.runs.checkpoints import Checkpoints
from cifar_jax.runs.folder import existing_workdir
from cifar_jax.training import setup
from cifar_jax.training.evaluation import compile_logits, measure
from cifar_jax.training.loop import planned
from cifar_jax.training.result import params_sha256


class Evaluated(NamedTuple):
    """A split as a checkpoint of a run classes it."""

    experiment: str
    seed: int
    epoch: int
    step: int
    logits: np.ndarray
    """float32 `[N, classes]`."""
    labels: np.ndarray
    """int32 `[N]`."""
    params_sha256: str
    """Of the parameters, as in a result."""
    data_sha256: str
    """Of the images, as in a result."""


def evaluate(
    path: Path, split: str = "test", best: bool = False, own: models.CustomModel | None = None
) -> dict[str, Any]:
    """Loss and accuracy of a run's last checkpoint, or its best on validation, over a whole split.

    Images are looked at as the run looked at its test images.

    Raises:
      UserError: no run or no checkpoint in the folder, a split that is empty, or `own` missing or
        another where the model is none of the package's.
    """
    found = logits(path, split, best, own)
    return {
        "experiment": found.experiment,
        "seed": found.seed,
        "split": split,
        "images": len(found.labels),
        "epoch": found.epoch,
        "step": found.step,
        **measure(found.logits, found.labels),
    }


def logits(
    path: Path, split: str = "test", best: bool = False, own: models.CustomModel | None = None
) -> Evaluated:
    """What a run's last checkpoint, or its best on validation, says of every image of a split.

    Images are looked at as the run looked at its test images.

    Raises:
      UserError: as `evaluate`.
    """
    if not path.is_dir():
        return _of_a_file(path, split, best, own)
    network = load_run(path, best=best, own=own)
    workdir, identity = existing_workdir(path)
    step = network.card["step"]
    with Checkpoints(workdir.checkpoints) as checkpoints:  # before the run, at work, deletes it
        extra = next((meta.extra for meta in checkpoints.all() if meta.step == step), {})
    workload = setup.workload(_on_this_machine(from_flat(identity["config"])), own=own)
    _hold_to_its_classes(path, network.classes, workload.dataset)
    images = {
        "train": workload.train,
        "validation": workload.validation,
        "test": workload.dataset.test,
    }[split]
    if not len(images.labels):
        raise UserError(f"{path} has no {split} images: it ran with data.validation=0")
    _hold_to_its_images(path, workdir.images(), workload, split)
    evaluated = compile_logits(
        network.module,
        network.variables,
        images.images,
        normalize=network.normalize,
        batch_size=workload.config.train.eval_batch_size,
        mesh=workload.mesh,
        views=network.views,
    )(network.variables)
    return Evaluated(
        experiment=identity["experiment"],
        seed=identity["seed"],
        epoch=planned(workload, extra.get("epochs")).epochs_before(step),
        step=step,
        logits=evaluated,
        labels=images.labels,
        params_sha256=params_sha256(network.variables["params"]),
        data_sha256=workload.dataset.fingerprint,
    )


def _of_a_file(path: Path, split: str, best: bool, own: models.CustomModel | None) -> Evaluated:
    """Of an export, or of weights that come with the package: on the test images alone, since it
    does not say which were held out."""
    network = load(path, best=best, own=own)
    if split != "test":
        raise UserError(f"{path} is no run's folder: only --split test is known of it")
    trained = {"name": "cifar10"} | (network.card.get("data") or {})
    if trained["name"].startswith("folder:"):
        raise UserError(f"{path} does not know where its images are: evaluate its run's folder")
    dataset = data.load(trained["name"])
    _hold_to_its_classes(path, network.classes, dataset)
    if trained.get("content", dataset.content) != dataset.content:
        raise UserError(
            f"{path} was trained on other images of {trained['name']}: set TFDS_DATA_DIR to the "
            "folder that they are in"
        )
    images, labels = dataset.test
    known = isinstance(network, TrainedNetwork)
    return Evaluated(
        experiment=network.card["experiment"],
        seed=network.card["seed"],
        epoch=network.card.get("epoch") or 0,
        step=network.card.get("step") or 0,
        logits=network.logits(images, network.views),
        labels=labels,
        params_sha256=params_sha256(network.variables["params"]) if known else "",
        data_sha256=dataset.fingerprint,
    )


def _hold_to_its_classes(path: Path, classes: Sequence[str], dataset: data.Dataset) -> None:
    if tuple(classes) != tuple(dataset.classes):
        raise UserError(f"{path} has other classes than the data set {dataset.name}")


def _hold_to_its_images(
    path: Path, trained: Mapping[str, Any] | None, workload: setup.Setup, split: str
) -> None:
    """That the images are those that the run was trained on; the test images in any order."""
    if trained is None:
        return  # nothing is told of them
    dataset = workload.dataset
    same = trained["content"] == dataset.content if split == "test" else False
    if not same and trained["sha256"] != dataset.fingerprint:
        raise UserError(
            f"{path} was trained on other images of {trained['name']}, or on these in another "
            "order: set TFDS_DATA_DIR to the folder that it was trained with"
        )


def _on_this_machine(config: Config) -> Config:
    """With as many devices as the run asked for, or else with those that there are."""
    if (config.train.devices or 0) <= jax.device_count():
        return config
    return override(config, ["train.devices=none"])
