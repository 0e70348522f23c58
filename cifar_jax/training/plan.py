"""The plan of a run: the image size, batch size and augmentation of each epoch.

A plan is made once, from the config, and does not change. Only this module determines which steps
belong to an epoch.
"""

from bisect import bisect_right
from collections.abc import Iterator
from typing import NamedTuple

from flax import linen as nn

from cifar_jax import models
from cifar_jax.config import Augmentation, Config
from cifar_jax.data import pipeline
from cifar_jax.errors import UserError


class StepVariant(NamedTuple):
    """Settings of a train step that may differ between epochs. Each variant is compiled once."""

    image_size: int
    """Height and width of the images in a train step, in pixels."""
    batch_size: int
    augmentation: Augmentation
    frozen_groups: tuple[int, ...] = ()
    """Numbers of the parameter groups that are frozen, counted from 1."""


class Epoch(NamedTuple):
    """One pass over the training images."""

    number: int
    """Number of the epoch, counted from 0."""
    variant: StepVariant
    begin: int
    """Number of training steps before this epoch."""
    steps: int
    """Number of training steps in this epoch."""

    @property
    def end(self) -> int:
        """Number of training steps from the start of the run to the end of this epoch."""
        return self.begin + self.steps


class Plan(NamedTuple):
    """The epochs of a run, in order."""

    epochs: tuple[Epoch, ...]

    @property
    def steps(self) -> int:
        """Number of training steps in the whole run."""
        return self.epochs[-1].end

    @property
    def variants(self) -> tuple[StepVariant, ...]:
        """The different variants of the train step, in the order of their first use."""
        return tuple(dict.fromkeys(epoch.variant for epoch in self.epochs))

    def remaining(self, epoch: int) -> Iterator[Epoch]:
        """Yield the epochs whose number is `epoch` or higher."""
        yield from self.epochs[epoch:]


def make(config: Config, images: int, image_size: int) -> Plan:
    """Return the plan of a run. `images` is the number of training images.

    `image_size` is the height and width of the training images in pixels.
    """
    # A new variant starts whenever a phase ends or a parameter group is frozen.
    ends = {phase.until for phase in config.phases}
    frozen = {group.until for group in config.param_groups if group.until is not None}
    starts = sorted({0.0} | ends | frozen)
    variants = [_variant(config, image_size, start) for start in starts]
    epochs: list[Epoch] = []
    for number in range(config.epochs):
        variant = variants[bisect_right(starts, number / config.epochs) - 1]
        steps = pipeline.steps_per_epoch(images, variant.batch_size, config.data.last_batch)
        epochs.append(Epoch(number, variant, epochs[-1].end if epochs else 0, steps))
    return Plan(tuple(epochs))


def suggested_batch_size(images: int) -> int:
    """Return the largest power of two with which an epoch has at least 20 steps, or 1."""
    return 1 << max((images // 20).bit_length() - 1, 0)


def validate_sizes(config: Config, model: nn.Module) -> None:
    """Raise UserError if the network cannot be trained on the image sizes of the config.

    The package's networks without global pooling are defined for 32×32 images only. A custom
    network may adapt its parameters to `data.image_size`.
    """
    name, size = config.model.name, config.data.image_size
    initial = models.IMAGE_SHAPE[0] if name in models.MODELS else size
    sizes = [("data.image_size is", size)]
    sizes += [("a phase has image_size", phase.image_size or size) for phase in config.phases]
    for what, pixels in sizes:
        if pixels != initial and not models.accepts_size(model, pixels, initial):
            raise UserError(
                f"{what} {pixels}, but {name} accepts only images of {initial} × {initial} pixels: "
                "leave the setting out, or choose a network with global average pooling, such as "
                "net-bn-gap or resnet18"
            )


def _variant(config: Config, image_size: int, progress: float) -> StepVariant:
    """Return the train step variant of an epoch.

    `progress` is the fraction of all epochs that come before this epoch.
    """
    default = Augmentation(**config.data.model_dump(include=set(Augmentation.model_fields)))
    groups = enumerate(config.param_groups, start=1)
    frozen = tuple(i for i, group in groups if group.until is not None and progress >= group.until)
    for phase in config.phases:
        if progress < phase.until:
            return StepVariant(
                phase.image_size or image_size,
                phase.batch_size or config.batch_size,
                phase.augmentation or default,
                frozen,
            )
    return StepVariant(image_size, config.batch_size, default, frozen)
