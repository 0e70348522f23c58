"""Read the logits and labels that a run stores. JAX is not imported."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from cifar_jax.errors import UserError

if TYPE_CHECKING:
    import numpy as np


class Outputs(NamedTuple):
    """The logits of a trained network for the images of a split, and the labels of these images."""

    logits: np.ndarray
    """Logits `[N, classes]`: float16 in the oldest records, otherwise float32."""
    labels: np.ndarray
    """Classes of the images, `[N]`."""
    epoch: int | None = None
    """Epoch after which the logits were computed. None: the last epoch of a finished run."""


def read_outputs(path: Path, split: str = "test") -> Outputs:
    """Return the logits and labels of a split in an `outputs.npz` or a `validation.npz`.

    Raises:
      UserError: the file cannot be read, or does not contain the split.
    """
    outputs = read_split(path, split)
    if outputs is None:
        raise UserError(f"{path} is damaged, or is not the outputs.npz of a run")
    return outputs


def read_split(path: Path, split: str) -> Outputs | None:
    """Return the logits and labels of a split, or None if the file does not contain the split."""
    # The import of NumPy is slow, and reports on a terminal do not need NumPy.
    import numpy as np

    content = path.read_bytes()
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            if f"{split}_logits" not in file:
                return None
            logits, labels = file[f"{split}_logits"], file[f"{split}_labels"]
            epoch = int(file["epoch"]) if "epoch" in file else None
    # The readers of zip, deflate and npy raise different classes of exceptions.
    except Exception:
        raise UserError(f"{path} is damaged, or is not the outputs.npz of a run") from None
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or not labels.size:
        raise UserError(
            f"{path} is damaged: the shapes of {split}_logits and {split}_labels do not match"
        )
    return Outputs(logits, labels, epoch)
