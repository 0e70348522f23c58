"""Loads a trained model, whatever it is kept in."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cifar_jax import models
from cifar_jax.errors import UserError
from cifar_jax.inference import exports
from cifar_jax.inference.model import Classifier, load_run, read_run

WEIGHTS = Path(__file__).parents[1] / "weights"
"""Trained small networks that come with the package: `EXPERIMENT.safetensors`, each of a record."""


def load(
    path: str | Path, *, best: bool = False, own: models.CustomModel | None = None
) -> Classifier:
    """The trained model in `path`: a run's folder, a file of `cifar-jax export`, or the name of an
    experiment whose weights come with the package.

    Of a run the weights alone are read, of its last checkpoint; neither the images that it was
    trained on nor its optimizer are needed. A run or a safetensors file gives a `TrainedNetwork`.

    Args:
      path: the folder or file.
      best: take the checkpoint of the best validation accuracy.
      own: the model, where it is none of the package's. What a folder holds is never executed.

    Raises:
      UserError: there is nothing of the kind, it is damaged, or `own` is missing or of another
        model.
    """
    path = Path(path)
    if path.is_dir():
        return load_run(path, best=best, own=own)
    return exports.load(_file(path, best), own)


def weights(path: str | Path) -> Mapping[str, Any]:
    """The variables in `path`, which is what `load` takes, whatever the network.

    Raises:
      UserError: as `load`, or a StableHLO file, which has none.
    """
    path = Path(path)
    if path.is_dir():
        return read_run(path)[1]
    return exports.weights(_file(path, best=False))


def _file(path: Path, best: bool) -> Path:
    """The export, or the packaged weights, that `path` names."""
    packaged = WEIGHTS / f"{path}.safetensors"
    if not path.exists() and packaged.is_file():
        path = packaged
    if best:
        raise UserError(f"{path} is no run's folder, and has one set of weights only")
    if not path.exists():
        names = ", ".join(sorted(file.stem for file in WEIGHTS.glob("*.safetensors")))
        raise UserError(
            f"no run or export {path}; runs are under runs/EXPERIMENT/seedN, "
            f"and weights of {names} come with the package"
        )
    return path
