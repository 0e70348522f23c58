"""The ten experiments of “A New Classifier Based on CIFAR10 Data Set” in JAX and Flax."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from cifar_jax.inference.model import Classifier

__all__ = ["load"]


def load(path: str | Path, *, best: bool = False) -> Classifier:
    """The trained model in `path`, a run's folder or a file of `cifar-jax export`.

    `predict` of it takes uint8 images `[N, 32, 32, 3]`, or files, and gives probabilities
    `[N, classes]`; `classes` names them, `card` tells what model it is. Neither the images that it
    was trained on nor its optimizer are read.

    Args:
      path: the folder or file.
      best: of a run, take the checkpoint of the best validation accuracy instead of the last.

    Raises:
      cifar_jax.errors.UserError: there is nothing of the kind, or it is damaged.
    """
    # Here, so that importing the package stays light.
    from cifar_jax.inference.load import load

    return load(path, best=best)
