"""What happens when in a run: its epochs, their steps, and what images are like in each.

Pure data. Nothing else knows how steps and epochs hang together.
"""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

from cifar_jax.config import Augmentation, Config
from cifar_jax.data import pipeline


class StepVariant(NamedTuple):
    """What is the same in some epochs and may differ in others: each has a program of its own."""

    image_size: int
    """Pixels along a side."""
    batch_size: int
    augmentation: Augmentation
    frozen: tuple[int, ...] = ()
    """Numbers of the groups of parameters, from 1, that are not trained."""


class Epoch(NamedTuple):
    """One pass through the training images."""

    number: int
    """From 0."""
    stage: StepVariant
    begin: int
    """Updates made before it."""
    steps: int
    """Updates in it."""

    @property
    def end(self) -> int:
        """Updates made after it."""
        return self.begin + self.steps

    @property
    def step_pixels(self) -> int:
        """Pixels in a step: what its time goes by, of one network."""
        return self.stage.batch_size * self.stage.image_size**2


class Plan(NamedTuple):
    """The epochs of a run, in their order."""

    epochs: tuple[Epoch, ...]

    @property
    def steps(self) -> int:
        """Updates of the whole run."""
        return self.epochs[-1].end

    @property
    def stages(self) -> tuple[StepVariant, ...]:
        """Each that occurs, once, in the order of the first epochs that have it."""
        return tuple(dict.fromkeys(epoch.stage for epoch in self.epochs))

    def epochs_before(self, step: int) -> int:
        """How many epochs are over after so many updates, or the place of the one that goes on."""
        return bisect_right([epoch.end for epoch in self.epochs], step)

    def pixels_before(self, step: int) -> int:
        """Pixels in the steps of so many updates."""
        return sum(
            epoch.step_pixels * max(0, min(step, epoch.end) - epoch.begin) for epoch in self.epochs
        )


def as_json(plan: Plan, stages: Sequence[StepVariant]) -> list[list[int]]:
    """Of each epoch the place of its stage among `stages`, and its steps."""
    return [[stages.index(epoch.stage), epoch.steps] for epoch in plan.epochs]


def from_json(epochs: Sequence[Sequence[int]], stages: Sequence[StepVariant]) -> Plan:
    """The plan that `as_json` wrote down."""
    ends = list(accumulate((steps for _, steps in epochs), initial=0))
    return Plan(
        tuple(
            Epoch(number, stages[stage], begin, steps)
            for number, ((stage, steps), begin) in enumerate(zip(epochs, ends, strict=False))
        )
    )


def make(config: Config, images: int, image_size: int) -> Plan:
    """The plan of a run on so many training images, of so many pixels along a side."""
    return _laid_out(config, images, image_size, config.epochs, ())


def fitted(
    config: Config, images: int, image_size: int, begun: Sequence[Epoch], pixels: float
) -> Plan:
    """The longest plan within a number of pixels; its last epoch may be cut short.

    Args:
      config: as of `make`; there are never more epochs than it has.
      images: likewise.
      image_size: likewise.
      begun: epochs that are over, and the one that goes on.
      pixels: in the steps of the whole run.
    """
    *over, current = begun
    steps = pipeline.steps_per_epoch(images, current.stage.batch_size, config.data.last_batch)
    begun = (*over, current._replace(steps=steps))

    def planned(epochs: int) -> Plan:
        return _laid_out(config, images, image_size, epochs, begun)

    def pixels_of(epochs: int) -> int:
        plan = planned(epochs)
        return plan.pixels_before(plan.steps)

    # More epochs are more pixels, but for a step or two where a phase in the middle has the most.
    whole = bisect_right(range(config.epochs + 1), pixels, lo=len(begun), key=pixels_of) - 1
    if whole == config.epochs:
        return planned(whole)
    plan = planned(max(whole + 1, len(begun)))
    *kept, last = plan.epochs
    left = pixels - plan.pixels_before(last.begin)
    steps = max(int(left // last.step_pixels), 0 if kept else 1)
    return Plan((*kept, last._replace(steps=steps)) if steps else tuple(kept))


def possible_stages(config: Config, image_size: int) -> tuple[StepVariant, ...]:
    """Each that some number of epochs has, once; a plan may pass over the shorter ones."""
    return tuple(dict.fromkeys(stage for _, stage in _stages(config, image_size)))


def _laid_out(
    config: Config, images: int, image_size: int, epochs: int, begun: Sequence[Epoch]
) -> Plan:
    """So many epochs, of which some have `begun`."""
    stages = _stages(config, image_size)
    shares = [share for share, _ in stages]
    # What is over does not come back, though of more epochs it might not be over yet.
    first = next((i for i, (_, s) in enumerate(stages) if begun and s == begun[-1].stage), 0)
    planned = list(begun)
    for number in range(len(begun), epochs):
        _, stage = stages[max(first, bisect_right(shares, number / epochs) - 1)]
        steps = pipeline.steps_per_epoch(images, stage.batch_size, config.data.last_batch)
        begin = planned[-1].end if planned else 0
        planned.append(Epoch(number, stage, begin, steps))
    return Plan(tuple(planned))


def _stages(config: Config, image_size: int) -> list[tuple[float, StepVariant]]:
    """Each with the share of the epochs that are over when it begins, in their order."""
    ends = {phase.until for phase in config.phases}
    frozen = {group.until for group in config.param_groups if group.until is not None}
    shares = sorted({0.0} | ends | frozen)
    return [(share, _stage(config, image_size, share)) for share in shares]


def _stage(config: Config, image_size: int, over: float) -> StepVariant:
    """The one in which an epoch is that begins when that share of the epochs is over."""
    usual = Augmentation(**config.data.model_dump(include=set(Augmentation.model_fields)))
    groups = enumerate(config.param_groups, start=1)
    frozen = tuple(i for i, group in groups if group.until is not None and over >= group.until)
    for phase in config.phases:
        if over < phase.until:
            return StepVariant(
                phase.image_size or image_size,
                phase.batch_size or config.batch_size,
                phase.augmentation or usual,
                frozen,
            )
    return StepVariant(image_size, config.batch_size, usual, frozen)
