"""Measure the loss and accuracy of a trained model over a whole split of its data set."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from cifar_jax import data, devices, models
from cifar_jax.data import Dataset, Split, cifar10, split_validation
from cifar_jax.errors import UserError
from cifar_jax.inference.load import load
from cifar_jax.inference.model import Classifier, TrainedNetwork
from cifar_jax.runs.folder import RunFolder
from cifar_jax.training.evaluation import Outputs, compile_logits, loss_and_accuracy

BATCH_SIZE = 500
"""Number of images per batch. It equals the default of the setting `train.eval_batch_size`."""


class Evaluation(NamedTuple):
    """Loss in nats and accuracy in percent of a trained model over a split."""

    experiment: str
    seed: int
    split: str
    images: int
    epoch: int | None
    """Epoch of the weights; None if it is unknown."""
    step: int | None
    """Training step of the weights; None if it is unknown."""
    loss: float
    """Loss with the run's test-time augmentation."""
    accuracy: float
    """Accuracy with the run's test-time augmentation."""
    loss_plain: float
    """Loss with one view of each image."""
    accuracy_plain: float
    """Accuracy with one view of each image."""


def evaluate(
    path: Path,
    split: str = "test",
    best: bool = False,
    custom: models.CustomModel | None = None,
    dataset_name: str | None = None,
) -> Evaluation:
    """Measure the loss and accuracy of a trained model on the data set that it was trained on.

    Args:
      path: a run folder, an export, or the name of a packaged network.
      split: `train`, `validation` or `test`.
      best: use the checkpoint with the best validation accuracy instead of the last.
      custom: the custom model, if the network is not part of the package.
      dataset_name: `folder:PATH` with the new path, if a folder of images was moved. None: the
        data set of the training.

    Raises:
      UserError: the model cannot be loaded, the images on this machine are not the images that the
        model was trained on, or the split is empty.
    """
    model = load(path, best=best, custom=custom)
    skipped = model.card.data.skipped_images if model.card.data else 0
    name = dataset_name or _dataset_name(path, model)
    dataset = data.load(name, skip_bad_images=skipped > 0, target=model.target)
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


def quick_accuracy(model: Classifier) -> float | None:
    """Return the accuracy in percent on the first 1,000 test images of CIFAR-10.

    The result is None if the model has other classes or another image size, or if CIFAR-10 is not
    on this machine.
    """
    prepared = cifar10.folder(data.default_data_dir()).exists()
    is_cifar = model.classes == cifar10.CLASSES and model.image_shape == models.IMAGE_SHAPE
    if not is_cifar or not prepared:
        return None
    test = data.load("cifar10").test
    return loss_and_accuracy(model.logits(test.images[:1000]), test.labels[:1000])[1]


def _dataset_name(path: Path, model: Classifier) -> str:
    """Return the name of the data set to load.

    If the data set is a folder of images, `path` must be a run folder. An export does not store the
    path of the images.
    """
    if path.is_dir():
        return RunFolder(path).identity().settings["data.dataset"]
    name = model.card.data.name if model.card.data else "cifar10"
    if name.startswith("folder:"):
        raise UserError(
            f"{path} was trained on a folder of images, and an export does not say where that "
            "folder is: add --set data.dataset=folder:PATH"
        )
    return name


def _check_images(path: Path, model: Classifier, dataset: Dataset, split: str) -> None:
    """Raise UserError if the model was trained on other images.

    The order of the images matters too, except for the split `test`.
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
        remedy = "Set TFDS_DATA_DIR to the data folder that was used in training."
        if dataset.name.startswith("folder:"):
            remedy = "Name the folder of the training images with --set data.dataset=folder:PATH."
        raise UserError(
            f"{path} was trained on other images of {card.name}, or on the same images in another "
            f"order. {remedy}"
        )


def _select(path: Path, model: Classifier, dataset: Dataset, split: str) -> Split:
    """Return the images and labels of a split, as the training run used them."""
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
    """Compute the logits of images on one device, even if there are several devices."""
    if not isinstance(model, TrainedNetwork):
        return model.outputs(images, model.tta)
    logits_of = compile_logits(
        model.module,
        model.variables,
        images,
        normalize=model.normalize,
        batch_size=BATCH_SIZE,
        mesh=devices.make_mesh(BATCH_SIZE, 1),
        precision=model.card.precision,
        tta=model.tta,
    )
    return logits_of(model.variables)
