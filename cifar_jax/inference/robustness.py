"""Measure the accuracy of a trained model on CIFAR-10-C, for each corruption and severity."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cifar_jax import models
from cifar_jax.data import corruptions
from cifar_jax.inference.evaluate import compile_outputs, match_labels
from cifar_jax.inference.load import load
from cifar_jax.logits import loss_and_accuracy


class CorruptionScores(NamedTuple):
    """Accuracies in percent for one kind of corruption."""

    name: str
    in_benchmark: bool
    """Whether the corruption is one of the 15 benchmark corruptions."""
    accuracies: tuple[float, ...]
    """Accuracy for severities 1 to 5, with the run's test-time augmentation."""
    accuracies_plain: tuple[float, ...]
    """Accuracy for severities 1 to 5, without test-time augmentation."""

    @property
    def mean(self) -> float:
        """Mean of `accuracies`."""
        return float(np.mean(self.accuracies))


class Robustness(NamedTuple):
    """Accuracies of a trained model on CIFAR-10-C, in percent."""

    experiment: str
    seed: int
    data: str
    images: int
    """Number of images for each corruption and severity."""
    epoch: int | None
    step: int | None
    mean_accuracy: float
    """Mean accuracy over the benchmark corruptions. If the folder has no benchmark corruption, the
    mean is over all corruptions."""
    mean_accuracy_plain: float
    """`mean_accuracy` without test-time augmentation."""
    mean_accuracy_all: float
    """Mean accuracy over all corruptions in the folder."""
    corruptions: tuple[CorruptionScores, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return all fields as one JSON-compatible dictionary."""
        rows = [entry._asdict() | {"mean": entry.mean} for entry in self.corruptions]
        return self._asdict() | {"corruptions": rows}


def evaluate_corruptions(
    path: Path, folder: Path, best: bool = False, custom: models.CustomModel | None = None
) -> tuple[Robustness, tuple[str, ...]]:
    """Return the accuracies of a trained model on CIFAR-10-C.

    Args:
      path: a run folder, an export, or the name of a packaged network.
      folder: the folder with one `.npy` file for each corruption, and `labels.npy`.
      best: use the checkpoint of the best epoch instead of the last.
      custom: the custom model, if the network is not part of the package.

    Returns:
      The accuracies, and messages to the user about the classes.

    Raises:
      UserError: the model or the images cannot be loaded, or a label is out of range.
    """
    model = load(path, best=best, custom=custom)
    outputs_of, notes, rows, images = None, (), [], 0
    for corruption in corruptions.read(folder, model.target):
        pairs = []
        for part in corruption.severities:
            labels, notes = match_labels(model.classes, part._replace(name=str(folder)))
            outputs_of = outputs_of or compile_outputs(model, part.images)
            outputs, images = outputs_of(part.images), len(labels)
            pairs.append(
                [loss_and_accuracy(logits, labels)[1] for logits in (outputs.logits, outputs.plain)]
            )
        accuracies, plain = zip(*pairs, strict=True)
        known = corruption.name in corruptions.BENCHMARK
        rows.append(CorruptionScores(corruption.name, known, accuracies, plain))
    chosen = [row for row in rows if row.in_benchmark] or rows
    return Robustness(
        experiment=model.card.experiment,
        seed=model.card.seed,
        data=f"cifar10-c:{folder}",
        images=images,
        epoch=model.card.epoch,
        step=model.card.step,
        mean_accuracy=float(np.mean([row.accuracies for row in chosen])),
        mean_accuracy_plain=float(np.mean([row.accuracies_plain for row in chosen])),
        mean_accuracy_all=float(np.mean([row.accuracies for row in rows])),
        corruptions=tuple(rows),
    ), notes
