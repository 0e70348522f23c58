"""The ten experiments of “A New Classifier Based on CIFAR10 Data Set” in JAX and Flax."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from flax import linen as nn

    from cifar_jax.inference.model import Classifier

__all__ = ["load"]


def load(
    path: str | Path, *, best: bool = False, model: nn.Module | type[nn.Module] | None = None
) -> Classifier:
    """The trained model in `path`, a run's folder or a file of `cifar-jax export`.

    `predict` of it takes uint8 images `[N, 32, 32, 3]`, or files, and gives probabilities
    `[N, classes]`; `classes` names them, `card` tells what model it is. Neither the images that it
    was trained on nor its optimizer are read.

    Args:
      path: the folder or file.
      best: of a run, take the checkpoint of the best validation accuracy instead of the last.
      model: the module, its class or an instance, where it is none of this package's. The copy of
        its code that a run's folder holds is never executed.

    Raises:
      cifar_jax.errors.UserError: there is nothing of the kind, it is damaged, or `model` is missing
        or another.
    """
    # Here, so that importing the package stays light.
    from cifar_jax.inference.load import load
    from cifar_jax.models.custom import CustomModel

    return load(path, best=best, own=None if model is None else CustomModel(model))
