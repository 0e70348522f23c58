"""Compute probabilities, loss and accuracy from logits with NumPy. JAX is not imported."""

import numpy as np


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return class probabilities, float64 `[N, classes]`."""
    exponentials = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


def loss_and_accuracy(logits: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Return the mean cross-entropy in nats and the accuracy in percent.

    Args:
      logits: `[N, classes]`.
      labels: int32 `[N]`.
    """
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(-1, keepdims=True)
    losses = np.log(np.exp(shifted).sum(-1)) - shifted[np.arange(len(labels)), labels]
    correct = logits.argmax(-1) == labels
    return float(losses.mean()), float(100 * correct.mean())


def balanced_accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean of the class accuracies, in percent.

    Classes without images are left out.

    Args:
      logits: `[N, classes]`.
      labels: int32 `[N]`.
    """
    images = np.bincount(labels)
    correct = np.bincount(labels, weights=logits.argmax(-1) == labels)
    return float(100 * np.mean(correct[images > 0] / images[images > 0]))
