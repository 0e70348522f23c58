"""Loads a trained model, whatever it is kept in."""

from pathlib import Path

from cifar_jax.errors import UserError
from cifar_jax.inference import exports
from cifar_jax.inference.model import Classifier, load_run

WEIGHTS = Path(__file__).parents[1] / "weights"
"""Trained small networks that come with the package: `EXPERIMENT.safetensors`, each of a record."""


def load(path: str | Path, *, best: bool = False) -> Classifier:
    """The trained model in `path`: a run's folder, a file of `cifar-jax export`, or the name of an
    experiment whose weights come with the package.

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
    return exports.load(path)
