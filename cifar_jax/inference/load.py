"""Load a trained model from a run folder, an exported file, or the package."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from cifar_jax import models
from cifar_jax.config import Config, Model
from cifar_jax.errors import UserError
from cifar_jax.files import local_path
from cifar_jax.inference import exports
from cifar_jax.inference.model import Classifier, TrainedNetwork
from cifar_jax.runs.checkpoints import Checkpoints, DamagedError
from cifar_jax.runs.folder import existing_run_folder
from cifar_jax.runs.schemas import ModelCard, NetworkCard, Result, SavedState
from cifar_jax.training.freezing import Pretrained

WEIGHTS = Path(__file__).parents[1] / "weights"
"""Folder of the packaged networks. Each file has the name `EXPERIMENT.safetensors`."""


def load(
    path: str | Path, *, best: bool = False, custom: models.CustomModel | None = None
) -> Classifier:
    """Return a trained model.

    The result is a `TrainedNetwork`. Only a StableHLO file gives a plain `Classifier`.

    Args:
      path: a run folder, a file of `cifar-jax export`, or the name of a packaged network. From a
        run folder, only the weights of one checkpoint are read.
      best: use the checkpoint of the best epoch instead of the last.
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


def pretrained(path: str | Path, model: Model | None = None) -> Pretrained:
    """Return the variables and the class names of a trained model.

    Args:
      path: a run folder, a file of `cifar-jax export`, or the name of a packaged network.
      model: settings of the network that will use the variables. None: the options of the network
        are not checked.

    Raises:
      UserError: the model does not exist, is damaged, is a StableHLO export, which has no
        variables, or was trained with other options than `model` has.
    """
    path = local_path(path)
    card, variables = read_run(path) if path.is_dir() else exports.weights(_find_file(path))
    if model and model.name == card.model.name and model.name in models.MODELS:
        _check_options(card.model, model, path)
    return Pretrained(variables, tuple(card.classes))


def _check_options(trained: NetworkCard, wanted: Model, path: Path) -> None:
    """Raise UserError if the options of a network differ from those of the trained network.

    Some options, such as the pooling, change the results but not the shapes of the weights.
    """
    before, now = (
        models.create(network.name, pooling=network.pooling, **network.arguments)
        for network in (trained, wanted)
    )
    for option in ("pooling", *sorted(trained.arguments | wanted.arguments)):
        had, has = getattr(before, option, None), getattr(now, option, None)
        if had != has:
            name = option if option == "pooling" else f"arguments[{option!r}]"
            raise UserError(
                f"the weights of train.init_from={path} were trained with {option} {had}, but "
                f"this network has {option} {has}: set {name} of Model(...) in the experiment "
                "file to the same value"
            )


def weights_loader(config: Config) -> Callable[[], Pretrained] | None:
    """Return a function that loads the trained network that `train.init_from` names.

    The result is None if the setting is None.
    """
    source = config.train.init_from
    return None if source is None else partial(pretrained, source, config.model)


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
    """Return the model card of a run, with the step, epoch and accuracy of a checkpoint added."""
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
