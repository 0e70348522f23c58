"""Compute the scores of a classifier from logits and labels."""

from typing import NamedTuple

import numpy as np

from cifar_jax.calibration import calibration_error, reliability
from cifar_jax.logits import balanced_accuracy, loss_and_accuracy, softmax
from cifar_jax.training.evaluation import Outputs


class ClassScores(NamedTuple):
    """The scores of a classifier for one class, in percent. An undefined score is None."""

    name: str
    images: int
    """Number of images whose label is this class."""
    accuracy: float | None
    """Percentage of the images of this class that are classified correctly (recall). None if the
    class has no images."""
    precision: float | None
    """Percentage of the predictions of this class that are correct. None if the class is never
    predicted."""
    f1: float | None
    """Harmonic mean of accuracy and precision, in percent. None if the class has no images."""


class Scores(NamedTuple):
    """The scores of a classifier over a set of images. All scores except losses are in percent."""

    loss: float
    """Cross-entropy in nats with the run's test-time augmentation."""
    accuracy: float
    """Accuracy with the run's test-time augmentation."""
    loss_plain: float
    """Loss without test-time augmentation."""
    accuracy_plain: float
    """Accuracy without test-time augmentation."""
    balanced_accuracy: float
    """Mean of the accuracies of the classes that have images."""
    macro_f1: float
    """Mean of the F1 scores of the classes that have images."""
    top5_accuracy: float | None
    """Percentage of images whose label is among the five largest logits. None if there are at most
    5 classes."""
    calibration_error: float
    """Expected calibration error in percentage points, with 15 bins of equal width."""
    classes: tuple[ClassScores, ...]
    """Scores of each class, in the order of the logits."""


def score(outputs: Outputs, labels: np.ndarray, classes: tuple[str, ...]) -> Scores:
    """Return the scores of a classifier.

    All scores except `loss_plain` and `accuracy_plain` use test-time augmentation.

    Args:
      outputs: logits of the images.
      labels: int32 `[N]`, indices of `classes`.
      classes: names of the classes, in the order of the logits.
    """
    logits = outputs.logits
    loss, accuracy = loss_and_accuracy(logits, labels)
    loss_plain, accuracy_plain = loss_and_accuracy(outputs.plain, labels)
    per_class = _class_scores(logits.argmax(-1), labels, classes)
    f1s = [entry.f1 for entry in per_class if entry.f1 is not None]
    top5 = None
    if len(classes) > 5:
        largest = np.argpartition(logits, -5)[:, -5:]
        top5 = float(100 * (largest == labels[:, None]).any(-1).mean())
    return Scores(
        loss=loss,
        accuracy=accuracy,
        loss_plain=loss_plain,
        accuracy_plain=accuracy_plain,
        balanced_accuracy=balanced_accuracy(logits, labels),
        macro_f1=float(np.mean(f1s)),
        top5_accuracy=top5,
        calibration_error=calibration_error(
            reliability(softmax(logits).max(-1), logits.argmax(-1) == labels)
        ),
        classes=per_class,
    )


def _class_scores(
    answers: np.ndarray, labels: np.ndarray, classes: tuple[str, ...]
) -> tuple[ClassScores, ...]:
    count = len(classes)
    images = np.bincount(labels, minlength=count)
    answered = np.bincount(answers, minlength=count)
    correct = np.bincount(labels[answers == labels], minlength=count)

    def percent(part: float, whole: float) -> float | None:
        return float(100 * part / whole) if whole else None

    return tuple(
        ClassScores(
            name=name,
            images=n,
            accuracy=percent(right, n),
            precision=percent(right, a),
            f1=percent(2 * right, n + a) if n else None,
        )
        for name, n, a, right in zip(
            classes, images.tolist(), answered.tolist(), correct.tolist(), strict=True
        )
    )
