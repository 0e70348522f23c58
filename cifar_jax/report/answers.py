"""The answers of a group of runs: the classes that they predict for the images of a split."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from cifar_jax.data import cifar10
from cifar_jax.logits import softmax
from cifar_jax.report.groups import SeedGroup
from cifar_jax.runs.outputs import Outputs, read_split
from cifar_jax.runs.run import RunRecord


@dataclass(frozen=True)
class RunAnswers:
    """The classes that one run predicts for the images of a split."""

    run: RunRecord
    labels: np.ndarray
    """True classes of the images, int64 `[N]`."""
    answer: np.ndarray
    """Class with the largest logit for each image, int64 `[N]`."""
    confidence: np.ndarray
    """Probability of the predicted class for each image, float64 `[N]`."""
    epoch: int | None
    """Epoch after which the classes were predicted. None: the last epoch of a finished run."""

    @property
    def correct(self) -> np.ndarray:
        """Whether each predicted class is correct, bool `[N]`."""
        return self.answer == self.labels


@dataclass(frozen=True)
class Answers:
    """The classes that the runs of a group predict for a split. All runs have stored outputs."""

    split: str
    """`validation` or `test`."""
    classes: tuple[str, ...]
    runs: tuple[RunAnswers, ...]

    @cached_property
    def labels(self) -> np.ndarray:
        """True class of each image, repeated for each run, int64 `[runs * N]`."""
        return np.concatenate([run.labels for run in self.runs])

    @cached_property
    def answer(self) -> np.ndarray:
        """Predicted class of each image, run after run, int64 `[runs * N]`."""
        return np.concatenate([run.answer for run in self.runs])


@dataclass(frozen=True)
class Mistake:
    """An image that at least one run of a group classifies wrongly."""

    image: int
    """Position of the image in the split."""
    label: int
    answer: int
    confidence: float
    """Largest probability that a run gives to a wrong class."""
    wrong_runs: int
    """Number of runs that classify the image wrongly."""


def group_answers(group: SeedGroup) -> list[Answers]:
    """Return the predicted classes of a group for the validation images, then for the test images.

    If a group has finished runs, its unfinished runs are left out.

    Raises:
      UserError: a file with outputs is damaged.
    """
    runs = group.finished or group.unfinished
    found = []
    for split in ("validation", "test"):
        read = [(run, _read(run, split)) for run in runs]
        outputs = [(run, output) for run, output in read if output]
        # Runs of the same experiment file may have different numbers of classes. Keep only runs
        # with as many classes as the first run.
        sizes = [output.logits.shape[1] for _, output in outputs]
        same = [_answers(*pair) for pair in outputs if pair[1].logits.shape[1] == sizes[0]]
        if same:
            found.append(Answers(split, class_names(same[0].run, sizes[0]), tuple(same)))
    return found


def surest_mistakes(answers: Answers, count: int) -> list[Mistake]:
    """Return the `count` mistakes with the largest probability of the wrong class."""
    first = answers.runs[0]
    runs = [run for run in answers.runs if np.array_equal(run.labels, first.labels)]
    # Several runs may classify the same image wrongly, so take `count` mistakes from each run.
    candidates = sorted(
        (
            (float(run.confidence[image]), int(image), int(run.answer[image]))
            for run in runs
            for image in _surest(run, count)
        ),
        key=lambda candidate: (-candidate[0], candidate[1]),
    )
    mistakes: dict[int, Mistake] = {}
    for confidence, image, answer in candidates:
        if image not in mistakes:
            wrong = sum(not run.correct[image] for run in runs)
            label = int(first.labels[image])
            mistakes[image] = Mistake(image, label, answer, confidence, wrong)
    return list(mistakes.values())[:count]


def class_names(run: RunRecord, count: int) -> tuple[str, ...]:
    """Return the names of the classes of a run with `count` classes.

    Old records do not store the names. For data sets other than CIFAR-10, the numbers of the
    classes are returned.
    """
    if run.card and len(run.card.classes) == count:
        return tuple(run.card.classes)
    is_cifar10 = run.settings.get("data.dataset") == "cifar10" and count == len(cifar10.CLASSES)
    return cifar10.CLASSES if is_cifar10 else tuple(map(str, range(count)))


def _read(run: RunRecord, split: str) -> Outputs | None:
    file = run.outputs if split == "test" else run.validation
    return read_split(file, split) if file else None


def _answers(run: RunRecord, outputs: Outputs) -> RunAnswers:
    answer = outputs.logits.argmax(-1)
    confidence = softmax(outputs.logits.astype(np.float32)).max(-1)
    return RunAnswers(run, outputs.labels.astype(np.int64), answer, confidence, outputs.epoch)


def _surest(run: RunAnswers, count: int) -> np.ndarray:
    """Return the positions of at most `count` wrong predictions with the largest probabilities."""
    wrong = np.flatnonzero(~run.correct)
    return wrong[np.argsort(-run.confidence[wrong], kind="stable")[:count]]
