"""Compute the training loss, and whether each image is classified correctly.

Labels are classes, or class probabilities for images that mixup or cutmix has mixed.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax


def cross_entropy(logits: jax.Array, labels: jax.Array, smoothing: float = 0.0) -> jax.Array:
    """Return the cross-entropy of each image in nats, float32 `[N]`.

    Args:
      logits: float32 `[N, K]`.
      labels: classes, int32 `[N]`, or class probabilities, float32 `[N, K]`.
      smoothing: fraction of each label that is spread evenly over all K classes, as in PyTorch's
        `CrossEntropyLoss(label_smoothing=)` (C. Szegedy et al., arXiv:1512.00567).
    """
    hard = _are_classes(logits, labels)
    if hard and not smoothing:
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    classes = logits.shape[-1]
    probabilities = jax.nn.one_hot(labels, classes, dtype=logits.dtype) if hard else labels
    return optax.softmax_cross_entropy(logits, optax.smooth_labels(probabilities, smoothing))


def weighted_cross_entropy(
    logits: jax.Array, labels: jax.Array, weights: jax.Array, smoothing: float = 0.0
) -> jax.Array:
    """Return the class-weighted cross-entropy of each image in nats, float32 `[N]`.

    The mean of the result equals PyTorch's `CrossEntropyLoss(weight=, label_smoothing=)`. If labels
    are classes, PyTorch divides the sum of the losses by the sum of the images' class weights.

    Args:
      logits: float32 `[N, K]`.
      labels: classes, int32 `[N]`, or class probabilities, float32 `[N, K]`.
      weights: weight of each class, float32 `[K]`.
      smoothing: as for `cross_entropy`.
    """
    hard = _are_classes(logits, labels)
    probabilities = jax.nn.one_hot(labels, len(weights), dtype=logits.dtype) if hard else labels
    target = weights * optax.smooth_labels(probabilities, smoothing)
    losses = -(target * jax.nn.log_softmax(logits)).sum(-1)
    return losses / weights[labels].mean() if hard else losses


def balanced_weights(counts: np.ndarray) -> np.ndarray:
    """Return class weights that are inversely proportional to the number of images of each class.

    The mean weight over all images is 1, as in scikit-learn's `class_weight="balanced"`.

    Args:
      counts: number of images of each class, `[K]`. All numbers are positive.
    """
    return (counts.sum() / (len(counts) * counts)).astype(np.float32)


def correct(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Return whether each image is classified correctly, bool `[N]`.

    An image is classified correctly if its largest logit is that of its label. If the label is
    given as class probabilities, the first class with the largest probability is the label.

    Args:
      logits: float32 `[N, K]`.
      labels: classes, int32 `[N]`, or class probabilities, float32 `[N, K]`.
    """
    return logits.argmax(-1) == (labels if _are_classes(logits, labels) else labels.argmax(-1))


def _are_classes(logits: jax.Array, labels: jax.Array) -> bool:
    """Return whether labels are classes. Otherwise they are class probabilities."""
    if jnp.issubdtype(labels.dtype, jnp.integer):
        assert labels.shape == logits.shape[:-1], (labels.shape, logits.shape)
        return True
    assert labels.shape == logits.shape, (labels.shape, logits.shape)
    return False
