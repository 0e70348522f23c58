"""What happens when in a run: its epochs, their steps, and what images are like in each.

Pure data. Nothing else knows how steps and epochs hang together.
"""

from bisect import bisect_right
from typing import NamedTuple

from cifar_jax.config import Augmentation, Config
from cifar_jax.data import pipeline


class Stage(NamedTuple):
    """What is the same in some epochs and may differ in others: each has a program of its own."""

    image_size: int
    """Pixels along a side."""
    batch_size: int
    augmentation: Augmentation


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


def make(config: Config, images: int, image_size: int) -> Plan:
    """The plan of a run on so many training images, of so many pixels along a side."""
    planned: list[Epoch] = []
    begin = 0
    for number in range(config.epochs):
        stage = _stage(config, number, image_size)
        steps = pipeline.steps_per_epoch(images, stage.batch_size, config.data.last_batch)
        planned.append(Epoch(number, stage, begin, steps))
        begin += steps
    return Plan(tuple(planned))


def _stage(config: Config, number: int, image_size: int) -> Stage:
    usual = Augmentation(**config.data.model_dump(include=set(Augmentation.model_fields)))
    for phase in config.phases:
        if number < round(phase.until * config.epochs):
            return Stage(
                phase.image_size or image_size,
                phase.batch_size or config.batch_size,
                phase.augmentation or usual,
            )
    return Stage(image_size, config.batch_size, usual)
