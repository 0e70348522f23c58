"""What happens when in a run: its epochs, their steps, and what images are like in each.

Pure data. Nothing else knows how steps and epochs hang together.
"""

from bisect import bisect_right
from typing import Literal, NamedTuple

from cifar_jax.data import pipeline


class Stage(NamedTuple):
    """What is the same in some epochs and may differ in others: each has a program of its own."""

    batch_size: int


class Epoch(NamedTuple):
    """One pass through the training images."""

    number: int
    """From 0."""
    stage: Stage
    begin: int
    """Updates made before it."""
    steps: int
    """Updates in it."""

    @property
    def end(self) -> int:
        """Updates made after it."""
        return self.begin + self.steps


class Plan(NamedTuple):
    """The epochs of a run, in their order."""

    epochs: tuple[Epoch, ...]

    @property
    def steps(self) -> int:
        """Updates of the whole run."""
        return self.epochs[-1].end

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Each that occurs, once, in the order of the first epochs that have it."""
        return tuple(dict.fromkeys(epoch.stage for epoch in self.epochs))

    def epochs_before(self, step: int) -> int:
        """How many epochs are over after so many updates, or the place of the one that goes on."""
        return bisect_right([epoch.end for epoch in self.epochs], step)


def make(
    epochs: int, images: int, batch_size: int, last_batch: Literal["drop", "wrap"] = "drop"
) -> Plan:
    """The plan of a run.

    Args:
      epochs: how many there are.
      images: how many are trained on.
      batch_size: images in a step.
      last_batch: what becomes of an epoch's incomplete last batch.
    """
    stage = Stage(batch_size)
    planned: list[Epoch] = []
    begin = 0
    for number in range(epochs):
        steps = pipeline.steps_per_epoch(images, stage.batch_size, last_batch)
        planned.append(Epoch(number, stage, begin, steps))
        begin += steps
    return Plan(tuple(planned))
