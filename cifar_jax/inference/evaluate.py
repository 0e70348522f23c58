"""Measures a finished or unfinished run over a whole split."""

from pathlib import Path
from typing import Any

import jax

from cifar_jax.config import Config, from_flat, override
from cifar_jax.errors import UserError
from cifar_jax.evaluation import compile_logits, measure
from cifar_jax.inference.model import load_run
from cifar_jax.runs.folder import existing_workdir
from cifar_jax.training import programs


def evaluate(path: Path, split: str = "test", best: bool = False) -> dict[str, Any]:
    """Loss and accuracy of a run's last checkpoint, or its best on validation, over a whole split.

    Raises:
      UserError: no run or no checkpoint in the folder, or a split that is empty.
    """
    _, identity = existing_workdir(path)
    setup = programs.setup(_on_this_machine(from_flat(identity["config"])))
    images = {"train": setup.train, "validation": setup.validation, "test": setup.dataset.test}[
        split
    ]
    if not len(images.labels):
        raise UserError(f"{path} has no {split} images: it ran with data.validation=0")
    network = load_run(path, best=best)
    if network.classes != setup.dataset.classes:
        raise UserError(f"{path} has other classes than the data set {setup.dataset.name}")
    logits = compile_logits(
        network.module,
        network.variables,
        images.images,
        normalise=network.normalise,
        batch_size=setup.config.train.eval_batch_size,
        mesh=setup.mesh,
    )(network.variables)
    step = network.card["step"]
    return {
        "experiment": identity["experiment"],
        "seed": identity["seed"],
        "split": split,
        "images": len(images.labels),
        "epoch": step // setup.steps_per_epoch,
        "step": step,
        **measure(logits, images.labels),
    }


def _on_this_machine(config: Config) -> Config:
    """With as many devices as the run asked for, or else with those that there are."""
    if (config.train.devices or 0) <= jax.device_count():
        return config
    return override(config, ["train.devices=none"])
