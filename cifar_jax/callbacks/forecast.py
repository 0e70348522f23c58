"""The callback that estimates how long a run takes on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from cifar_jax import catalog
from cifar_jax.callbacks.base import Callback, CallMetrics, RunContext
from cifar_jax.errors import counted

if TYPE_CHECKING:
    from cifar_jax.training.plan import Epoch, Plan
    from cifar_jax.training.step import TrainState

MEASURED_SECONDS = 5.0
"""Seconds of training that are measured before the duration of the run is estimated."""
LONG_RUN = 2 * 3600.0
"""Duration of a run, in seconds, above which the log names faster alternatives."""


class Forecast(Callback):
    """Writes a log line with the estimated duration of the run.

    Further lines name faster alternatives to a long run. If a run takes only a few seconds, no line
    is written. The first compiled call of a session is not measured, because it includes one-time
    work.

    Args:
      line: function that writes a line to the log and to the console.
    """

    def __init__(self, line: Callable[[str], None]) -> None:
        self._line = line

    def on_start(self, context: RunContext, state: TrainState) -> None:
        """Start a new measurement."""
        self._context = context
        self._began: tuple[float, int, int] | None = None
        self._calls = 0
        self._done = False

    def on_call(self, state: TrainState, metrics: CallMetrics) -> None:
        """Write the estimate after `MEASURED_SECONDS` and at least three compiled calls."""
        if self._done:
            return
        now, epoch = time.perf_counter(), self._context.epoch
        if self._began is None:
            self._began = now, metrics.step, epoch.number
            return
        self._calls += 1
        began, first, number = self._began
        if self._calls < 3 or now - began < MEASURED_SECONDS:
            return
        self._done = True
        if epoch.number == number:
            seconds = (now - began) / (metrics.step - first)
        else:  # The time since `began` includes validation.
            seconds = epoch.variant.batch_size / metrics.images_per_second
        self._report(metrics.step, seconds)

    def _report(self, step: int, seconds: float) -> None:
        setup, epoch = self._context.setup, self._context.epoch
        left = remaining_seconds(setup.plan, epoch, step, seconds, len(setup.validation.labels))
        total = self._context.elapsed() + left
        per_epoch = (total / len(setup.plan.epochs)) if len(setup.plan.epochs) > 1 else None
        each = f", {duration(per_epoch)} per epoch" if per_epoch else ""
        early = ", unless it stops early" if setup.config.train.early_stopping else ""
        self._line(
            f"this run takes about {duration(total)} on this machine{each}{early}; about "
            f"{duration(left)} are left"
        )
        if total > LONG_RUN:
            platform = setup.mesh.devices.flat[0].platform
            experiment = self._context.identity.experiment
            for line in alternatives(experiment, setup.config.model.name, platform):
                self._line(line)


def remaining_seconds(
    plan: Plan, epoch: Epoch, step: int, seconds: float, validation_images: int
) -> float:
    """Return the estimated remaining time of a run, in seconds.

    The estimate assumes that the duration of a step is proportional to its number of pixels. It
    also assumes that evaluation of an image takes a third as long as training on the image.

    Args:
      plan: the epochs of the run.
      epoch: the epoch that is being trained.
      step: number of completed steps.
      seconds: measured duration of one step of `epoch`.
      validation_images: number of images that are evaluated after each epoch.
    """

    def pixels(epoch: Epoch) -> int:
        return epoch.variant.batch_size * epoch.variant.image_size**2

    per_pixel = seconds / pixels(epoch)
    size = plan.epochs[-1].variant.image_size
    left = 0.0
    for other in plan.epochs[epoch.number :]:
        steps = other.end - max(step, other.begin)
        left += per_pixel * (steps * pixels(other) + validation_images * size**2 / 3)
    return left


def duration(seconds: float) -> str:
    """Return a duration in words.

    >>> duration(42), duration(150), duration(3 * 3600)
    ('42 seconds', '2.5 minutes', '3 hours')
    """
    if round(seconds) < 90:
        return counted(max(round(seconds), 1), "second")
    unit, value = ("minute", seconds / 60) if seconds < 5400 else ("hour", seconds / 3600)
    text = f"{value:.2g}" if value < 100 else f"{value:,.0f}"
    return f"{text} {unit}{'' if text == '1' else 's'}"


def alternatives(experiment: str, model: str, platform: str) -> list[str]:
    """Return log lines that name faster ways to train a network.

    Args:
      experiment: name of the experiment.
      model: name of the network.
      platform: `cpu`, `gpu` or `tpu`.
    """
    lines = []
    for name in catalog.names():
        other = catalog.load(name)
        if name.startswith("fast-") and name != experiment and other.config.model.name == model:
            lines.append(
                f"faster: `cifar-jax train {name}` trains the same network "
                f"({other.cost.text if other.cost else counted(other.config.epochs, 'epoch')})"
            )
    if platform == "cpu":
        lines.append("faster: the same command on a machine with a GPU, with --device gpu")
    return lines
