"""Measures a trained model over a whole split of its data set."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from cifar_jax import data, devices, models
from cifar_jax.data import Dataset, Split, split_validation
from cifar_jax.errors import UserError
from cifar_jax.inference.load import load
from cifar_jax.inference.model import Classifier, TrainedNetwork
from cifar_jax.runs.folder import RunFolder
from cifar_jax.training.evaluation import Outputs, compile_logits, loss_and_accuracy

BATCH_SIZE = 500
"""The default of `train.eval_batch_size`."""


class Evaluation(NamedTuple):
    """Loss in nats and accuracy in percent over a split."""

    experiment: str
    seed: int
    split: str
    images: int
    epoch: int | None
    """Of the weights; None if it is unknown."""
    step: int | None
    loss: float
    """With the run's test-time augmentation."""
    accuracy: float
    loss_plain: float
    """With one view of each image."""
    accuracy_plain: float


def evaluate(
    path: Path, split: str = "test", best: bool = False, custom: models.CustomModel | None = None
) -> Evaluation:
    """Measure a trained model on the images of its own data set.

    Args:
      path: what `load` takes.
      split: `train`, `validation` or `test`.
      best: use the checkpoint with the best validation accuracy instead of the last.
      custom: the model, if it is none of the package's.

    Raises:
      UserError: the model cannot be loaded, its data set is not the one on this machine, or the
        split is empty.
    """
    model = load(path, best=best, custom=custom)
    dataset = data.load(_dataset_name(path, model))
    _check_images(path, model, dataset, split)
    images, labels = _select(path, model, dataset, split)
    outputs = _compute(model, images)
    loss, accuracy = loss_and_accuracy(outputs.logits, labels)
    loss_plain, accuracy_plain = loss_and_accuracy(outputs.plain, labels)
    return Evaluation(
        experiment=model.card.experiment,
        seed=model.card.seed,
        split=split,
        images=len(labels),
        epoch=model.card.epoch,
        step=model.card.step,
        loss=loss,
        accuracy=accuracy,
        loss_plain=loss_plain,
        accuracy_plain=accuracy_plain,
    )


def _dataset_name(path: Path, model: Classifier) -> str:
    """Return the name of the data set to load.

    For a folder of images this needs the run folder: an export does not store the folder's path.
    """
    if path.is_dir():
        return RunFolder(path).identity().settings["data.dataset"]
    name = model.card.data.name if model.card.data else "cifar10"
    if name.startswith("folder:"):
        raise UserError(
            f"{path} was trained on a folder of images, and an export does not say where that "
            "folder is: evaluate the run folder instead"
        )
    return name


def _check_images(path: Path, model: Classifier, dataset: Dataset, split: str) -> None:
    """Raise if the model was trained on other images.

    For the test images, another order is accepted.
    """
    if model.classes != tuple(dataset.classes):
        raise UserError(
            f"{path} cannot be evaluated on {dataset.name}, because the classes differ: the model "
            f"has {', '.join(model.classes)}, and the data set has {', '.join(dataset.classes)}"
        )
    card = model.card.data
    if card is None or card.sha256 == dataset.fingerprint:
        return
    if split != "test" or card.content != dataset.content:
        raise UserError(
            f"{path} was trained on other images of {card.name}, or on the same images in another "
            "order. Set TFDS_DATA_DIR to the data folder that was used in training."
        )


def _select(path: Path, model: Classifier, dataset: Dataset, split: str) -> Split:
    """Return a split as the run used it."""
    if split == "test":
        return dataset.test
    card = model.card.data
    train, validation = split_validation(dataset.train, card.validation_images if card else 0)
    if split == "train":
        return Split(*(array[: card and card.train_images] for array in train))
    if not len(validation.labels):
        raise UserError(
            f"{path} was trained without validation images (data.validation is 0): choose another "
            "--split"
        )
    return validation


def _compute(model: Classifier, images: np.ndarray) -> Outputs:
    """Return the logits, computed on one device whatever the number of devices."""
    if not isinstance(model, TrainedNetwork):
        return model.outputs(images, model.tta)
    logits_of = compile_logits(
        model.module,
        model.variables,
        images,
        normalize=model.normalize,
        batch_size=BATCH_SIZE,
        mesh=devices.make_mesh(BATCH_SIZE, 1),
        tta=model.tta,
    )
    return logits_of(model.variables)
