"""Loads a trained model, whatever it is kept in."""

from pathlib import Path

from cifar_jax.errors import UserError
from cifar_jax.inference import exports
from cifar_jax.inference.model import Classifier, load_run


def load(path: str | Path, *, best: bool = False) -> Classifier:
    """The trained model in `path`: a run's folder, or a file of `cifar-jax export`.

    Of a run the weights alone are read, of its last checkpoint; neither the images that it was
    trained on nor its optimizer are needed. A run or a safetensors file gives a `TrainedNetwork`.

    Args:
      path: the folder or file.
      best: take the checkpoint of the best validation accuracy.

    Raises:
      UserError: there is nothing of the kind, or it is damaged.
    """
    path = Path(path)
    if path.is_dir():
        return load_run(path, best=best)
    if best:
        raise UserError(f"{path} is no run's folder, and has one set of weights only")
    if not path.exists():
        raise UserError(f"no run or export {path}; runs are under runs/EXPERIMENT/seedN")
    return exports.load(path)
