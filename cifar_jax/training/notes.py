"""Compose the log lines at the start of a session that explain settings of the run."""

from itertools import groupby

import numpy as np

from cifar_jax import models
from cifar_jax.data import pipeline
from cifar_jax.errors import counted
from cifar_jax.training import freezing, plan
from cifar_jax.training.freezing import Frozen, Pretrained
from cifar_jax.training.setup import Setup


def settings_lines(setup: Setup, initial: Pretrained | None) -> list[str]:
    """Return log lines about classes, image sizes, fine-tuning, the schedule and the steps.

    Args:
      setup: the setup of the run.
      initial: trained network that the run starts from. None: random weights, or a resumed run.
    """
    lines = [*_class_lines(setup), *_phase_lines(setup), *_fine_tuning_lines(setup, initial)]
    return [*lines, *_warmup_lines(setup), *_few_steps_lines(setup)]


def _class_lines(setup: Setup) -> list[str]:
    """Return a log line for each split that lacks images of some classes."""
    lines = []
    splits = {"training": setup.train, "validation": setup.validation, "test": setup.dataset.test}
    for name, split in splits.items():
        missing = np.setdiff1d(np.arange(len(setup.dataset.classes)), split.labels)
        if len(missing) and len(split.labels):
            names = ", ".join(setup.dataset.classes[label] for label in missing[:20])
            lines.append(f"classes without {name} images: {names}{', …' * (len(missing) > 20)}")
            is_held_out = np.isin(missing, setup.validation.labels).any()
            if name == "training" and is_held_out and setup.dataset.validation_images is None:
                lines[-1] += ". Are the images sorted by class? The last ones are for validation."
    return lines


def _fine_tuning_lines(setup: Setup, initial: Pretrained | None) -> list[str]:
    spec, size, lines = setup.spec, setup.dataset.image_shape[0], []
    if initial and tuple(initial.classes) != tuple(setup.dataset.classes):
        names = ", ".join(initial.classes[:3]) + (", …" if len(initial.classes) > 3 else "")
        lines = [
            f"the last layer, {freezing.last_layer(spec.model, size)}, is new, because the "
            f"pretrained network has other classes ({names})"
        ]
    if setup.config.train.freeze:
        params = models.variable_shapes(spec.model, size)["params"]
        lines.append(freezing.describe(params, Frozen(spec.frozen, spec.frozen_norms)))
    return lines


def _warmup_lines(setup: Setup) -> list[str]:
    """Return a log line with the number of warm-up steps of the schedule `warmup-cosine`."""
    schedule, steps = setup.config.schedule, setup.plan.steps
    if schedule.name != "warmup-cosine":
        return []
    return [
        f"the learning rate rises for {int(schedule.warmup * steps + 1e-3):,} of {steps:,} steps "
        f"(schedule.warmup={schedule.warmup:g}) and then falls along a cosine"
    ]


def _few_steps_lines(setup: Setup) -> list[str]:
    """Return a log line that suggests a smaller batch size if an epoch has few steps."""
    fewest = min(setup.plan.epochs, key=lambda epoch: epoch.steps)
    images, better = len(setup.train.labels), plan.suggested_batch_size(len(setup.train.labels))
    if fewest.steps >= 10 or better >= fewest.variant.batch_size:
        return []
    last_batch = setup.config.data.last_batch
    is_phase = fewest.variant.batch_size != setup.config.batch_size
    setting = f"a batch_size of {better} in phases" if is_phase else f"--set batch_size={better}"
    return [
        f"an epoch has only {counted(fewest.steps, 'step')}, because the batch size is "
        f"{fewest.variant.batch_size:,} and there are {counted(images, 'training image')}: "
        f"{setting} gives {pipeline.steps_per_epoch(images, better, last_batch)} steps"
    ]


def _phase_lines(setup: Setup) -> list[str]:
    """Return a log line with the image size of each epoch, if a phase sets a size."""
    if not any(phase.image_size for phase in setup.config.phases):
        return []
    spans = []
    for size, group in groupby(setup.plan.epochs, key=lambda epoch: epoch.variant.image_size):
        epochs = [epoch.number + 1 for epoch in group]
        span = f"s {epochs[0]}–{epochs[-1]}" if epochs[1:] else f" {epochs[0]}"
        spans.append(f"{size} pixels in epoch{span}")
    return [f"image size: {', '.join(spans)}"]
