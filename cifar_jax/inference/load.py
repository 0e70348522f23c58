"""Load a trained model from a run folder, an export, or the package."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from cifar_jax import models
from cifar_jax.config import Config
from cifar_jax.errors import UserError
from cifar_jax.files import local_path
from cifar_jax.inference import exports
from cifar_jax.inference.model import Classifier, TrainedNetwork
from cifar_jax.runs.checkpoints import Checkpoints, DamagedError
from cifar_jax.runs.folder import existing_run_folder
from cifar_jax.runs.schemas import ModelCard, Result, SavedState

WEIGHTS = Path(__file__).parents[1] / "weights"
"""Folder of small trained networks that ship with the package, as `EXPERIMENT.safetensors`."""


def load(
    path: str | Path, *, best: bool = False, custom: models.CustomModel | None = None
) -> Classifier:
    """Return a trained model. It is a `TrainedNetwork`, except if `path` is a StableHLO file.

    Args:
      path: a run folder, a file of `cifar-jax export`, or the name of a packaged network. From a
        run folder, only the weights of one checkpoint are read.
      best: use the checkpoint with the best validation accuracy instead of the last.
      custom: the custom model, if the network is not part of the package. Code in a run folder is
        never executed.

    Raises:
      UserError: the model does not exist or is damaged, or `custom` is missing or is not the model
        that was trained.
    """
    path = local_path(path)
    if path.is_dir():
        return TrainedNetwork(*read_run(path, best=best), path, custom)
    file = _find_file(path)
    if best:
        raise UserError(
            f"--best needs a run folder, and {path} has only one set of weights: leave out --best"
        )
    return exports.load(file, custom)


def weights(path: str | Path) -> dict[str, Any]:
    """Return the variables of a trained model with any network.

    Args:
      path: a run folder, a file of `cifar-jax export`, or the name of a packaged network.

    Raises:
      UserError: the model does not exist or is damaged, or is a StableHLO export, which has no
        variables.
    """
    path = local_path(path)
    return read_run(path)[1] if path.is_dir() else exports.weights(_find_file(path))


def weights_loader(config: Config) -> Callable[[], Mapping[str, Any]] | None:
    """Return a function that loads the variables named by the setting `train.init_from`.

    Return None if the setting is None.
    """
    source = config.train.init_from
    return None if source is None else partial(weights, source)


def read_run(path: Path, *, best: bool = False) -> tuple[ModelCard, dict[str, Any]]:
    """Return the model card and the variables of a run's last or best checkpoint.

    Raises:
      UserError: the folder is not a run folder, the checkpoint is missing, or a file is damaged.
    """
    folder = existing_run_folder(path)
    with Checkpoints(folder.checkpoints) as checkpoints:
        saved = checkpoints.best() if best else checkpoints.latest()
        card = folder.card()
        result = folder.result()
        if saved is None or card is None:
            if best and card and checkpoints.latest():
                raise UserError(
                    f"no checkpoint in {path} has a validation accuracy, so none is the best: "
                    "leave out --best to use the last one"
                )
            if saved:
                raise UserError(
                    f"{path} is damaged: model.json is missing. Restore it from a backup, or train "
                    "again with --fresh."
                )
            if result:
                raise UserError(
                    f"{path} has no checkpoint that can be read. Restore one from a backup, or "
                    "train again with --fresh."
                )
            raise UserError(f"{path} has no checkpoint yet: train the run first")
        try:
            variables = checkpoints.weights(saved)
        except DamagedError as error:
            raise UserError(
                f"{error}. Restore it from a backup, or train the run again with --fresh."
            ) from error
    return describe(card, saved, result), variables


def describe(card: ModelCard, saved: SavedState, result: Result | None) -> ModelCard:
    """Return a run's model card with the step, epoch and accuracy of one checkpoint."""
    known: dict[str, Any] = {"step": saved.step, "epoch": saved.epoch}
    if result:
        known["git_commit"] = result.git_commit
        if saved.step == result.steps:
            known["test_accuracy"] = result.test_accuracy
            known["test_accuracy_plain"] = result.test_accuracy_plain
        elif saved.end_of_epoch and saved.epoch == result.best_validation_epoch:
            known["test_accuracy"] = result.best_validation_test_accuracy
    return card.model_copy(update=known)


def _find_file(path: Path) -> Path:
    """Return the path of the export or packaged network that `path` names."""
    packaged = WEIGHTS / f"{path}.safetensors"
    if path.exists() or not packaged.is_file():
        packaged = path
    if not packaged.exists():
        names = ", ".join(sorted(file.stem for file in WEIGHTS.glob("*.safetensors")))
        raise UserError(
            f"{path} does not exist. Name a run folder (runs/EXPERIMENT/seedN), a file of "
            f"`cifar-jax export`, or a packaged network ({names})."
        )
    return packaged
