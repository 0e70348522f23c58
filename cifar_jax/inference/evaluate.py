"""Measure how well a trained model classifies the images of its run, or other labeled images."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cifar_jax import data, devices, models
from cifar_jax.config import FILE_KINDS
from cifar_jax.data import Dataset, Split, cifar10, split_validation
from cifar_jax.data.arrays import check_range
from cifar_jax.data.images import DEFAULT_TARGET
from cifar_jax.errors import UserError
from cifar_jax.inference.load import load
from cifar_jax.inference.model import Classifier, TrainedNetwork
from cifar_jax.inference.scores import Scores, score
from cifar_jax.logits import loss_and_accuracy
from cifar_jax.runs.folder import RunFolder
from cifar_jax.training.evaluation import Outputs, compile_logits

BATCH_SIZE = 500
"""Number of images per batch, equal to the default of the setting `train.eval_batch_size`."""


class Evaluation(NamedTuple):
    """Scores of a trained model over a set of images."""

    experiment: str
    seed: int
    split: str | None
    """Evaluated split of the run's data set. None: the images are from another data set."""
    data: str
    """Name of the evaluated data set."""
    images: int
    epoch: int | None
    """Number of epochs after which the weights were saved. None if it is unknown."""
    step: int | None
    """Number of training steps after which the weights were saved. None if it is unknown."""
    scores: Scores

    def as_dict(self) -> dict[str, Any]:
        """Return all fields and scores as one JSON-compatible dictionary."""
        fields = self._asdict() | self.scores._asdict()
        del fields["scores"]
        return fields | {"classes": [entry._asdict() for entry in self.scores.classes]}


def evaluate(
    path: Path,
    split: str = "test",
    best: bool = False,
    custom: models.CustomModel | None = None,
    dataset_name: str | None = None,
) -> Evaluation:
    """Return the scores of a trained model on the data set that it was trained on.

    Args:
      path: a run folder, an export, or the name of a packaged network.
      split: `train`, `validation` or `test`.
      best: use the checkpoint of the best epoch instead of the last.
      custom: the custom model, if the network is not part of the package.
      dataset_name: `folder:PATH` or `npz:FILE` with the new path of images that were moved. None:
        use the data set in the settings of the run.

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
    return _describe(model, split, dataset.name, compile_outputs(model, images)(images), labels)


def evaluate_on(
    path: Path, name: str, best: bool = False, custom: models.CustomModel | None = None
) -> tuple[Evaluation, tuple[str, ...]]:
    """Return the scores of a trained model on labeled images other than those of its run.

    Args:
      path: a run folder, an export, or the name of a packaged network.
      name: name of the images; see `cifar_jax.data.load_labeled`.
      best: use the checkpoint of the best epoch instead of the last.
      custom: the custom model, if the network is not part of the package.

    Returns:
      The scores, and messages to the user about the images and their classes.

    Raises:
      UserError: the model or the images cannot be loaded, or the model lacks a class of the
        images.
    """
    model = load(path, best=best, custom=custom)
    images = data.load_labeled(name, target=model.target, white=model.card.white)
    labels, notes = match_labels(model.classes, images)
    outputs = compile_outputs(model, images.images)(images.images)
    return _describe(model, None, name, outputs, labels), (*images.notes, *notes)


def match_labels(
    classes: tuple[str, ...], images: data.Labeled
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return the labels of images as indices of a model's classes, and messages to the user.

    Classes are matched by name. If the classes of the images have no names, the labels are taken as
    indices of the model's classes.

    Args:
      classes: the model's classes.
      images: the images and their labels.

    Raises:
      UserError: the images have a class that the model does not have.
    """
    if images.classes is None:
        check_range(images.name, images.labels, len(classes))
        first, last = classes[0], classes[-1]
        notes = [
            f"the classes of {images.name} have no names: label 0 is taken as {first}, and label "
            f"{len(classes) - 1} as {last}"
        ]
        labels = images.labels
    else:
        if others := [name for name in images.classes if name not in classes]:
            raise UserError(
                f"{images.name} has classes that the model does not have: {_some(others)}. The "
                f"model has {_some(classes)}."
            )
        labels = np.array([classes.index(name) for name in images.classes], np.int32)[images.labels]
        notes = []
    present = [classes[label] for label in np.unique(labels)]
    if len(present) < len(classes):
        notes.append(
            f"{images.name} has images of {len(present)} of the model's {len(classes)} classes: "
            f"{_some(present)}"
        )
    return labels, tuple(notes)


def _some(names: Sequence[str]) -> str:
    """Return text with at most 20 names, followed by the number of further names."""
    others = len(names) - 20
    return ", ".join(names[:20]) + (f" and {others} more" if others > 0 else "")


def _describe(
    model: Classifier, split: str | None, name: str, outputs: Outputs, labels: np.ndarray
) -> Evaluation:
    card = model.card
    return Evaluation(
        experiment=card.experiment,
        seed=card.seed,
        split=split,
        data=name,
        images=len(labels),
        epoch=card.epoch,
        step=card.step,
        scores=score(outputs, labels, model.classes),
    )


def quick_accuracy(model: Classifier) -> float | None:
    """Return the accuracy in percent on the first 1,000 test images of CIFAR-10.

    The result is None if the model has other classes or another image size, or if CIFAR-10 is not
    on this machine.
    """
    is_cifar = model.classes == cifar10.CLASSES and model.image_shape == models.IMAGE_SHAPE
    if not is_cifar or not data.is_local("cifar10"):
        return None
    test = data.load("cifar10").test
    return loss_and_accuracy(model.logits(test.images[:1000]), test.labels[:1000])[1]


def _dataset_name(path: Path, model: Classifier) -> str:
    """Return the name of the data set to load.

    If the model was trained on a folder or file of images, `path` must be a run folder. An export
    does not store the path of the images.
    """
    name = model.card.data.name if model.card.data else "cifar10"
    if path.is_dir():
        name = RunFolder(path).identity().settings["data.dataset"]
    is_cifar = model.classes == cifar10.CLASSES and model.target == DEFAULT_TARGET
    if model.card.data is None and name == "cifar10" and not is_cifar:
        raise UserError(
            f"{path} has imported weights, and does not say which images belong to it: name "
            "labeled images with --data folder:PATH or --data npz:FILE"
        )
    kind = name.partition(":")[0]
    if kind in FILE_KINDS and not path.is_dir():
        what, form = ("a file", "npz:FILE") if kind == "npz" else ("a folder", "folder:PATH")
        raise UserError(
            f"{path} was trained on {what} of images, and an export does not say where that "
            f"{what.partition(' ')[2]} is: add --set data.dataset={form}"
        )
    return name


def _check_images(path: Path, model: Classifier, dataset: Dataset, split: str) -> None:
    """Raise UserError if the model was trained on other images than those of `dataset`.

    Except for the split `test`, the order of the images must also be the same.
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
        if dataset.name.partition(":")[0] in FILE_KINDS:
            remedy = "Name the training images with --set data.dataset=folder:PATH or npz:FILE."
        raise UserError(
            f"{path} was trained on other images of {card.name}, or on the same images in another "
            f"order. {remedy}"
        )


def _select(path: Path, model: Classifier, dataset: Dataset, split: str) -> Split:
    """Return the images and labels of a split.

    The same images are held out for validation as in the training run.
    """
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


def compile_outputs(model: Classifier, images: np.ndarray) -> Callable[[np.ndarray], Outputs]:
    """Return a function that computes the logits of images with the run's test-time augmentation.

    The function uses only one device. It takes any number of images, and is compiled once.

    Args:
      model: the trained model.
      images: the first images that the function evaluates, uint8 `[N, H, W, 3]`.
    """
    if not isinstance(model, TrainedNetwork):
        return lambda images: model.outputs(images, model.tta)
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
    return lambda images: logits_of(model.variables, images)
