"""What a batch's logits are judged by: pure functions of logits and labels, hard or soft."""

import jax
import jax.numpy as jnp
import optax


def cross_entropy(logits: jax.Array, labels: jax.Array, smoothing: float = 0.0) -> jax.Array:
    """Cross-entropy of each image in nats, float32 `[N]`.

    Args:
      logits: float32 `[N, K]`.
      labels: classes, int32 `[N]`, or their probabilities, float32 `[N, K]`.
      smoothing: the share of a label that is spread evenly over all K classes, its own among them,
        as in PyTorch's `CrossEntropyLoss(label_smoothing=)` (C. Szegedy et al., arXiv:1512.00567).
    """
    hard = _are_classes(logits, labels)
    if hard and not smoothing:
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    classes = logits.shape[-1]
    probabilities = jax.nn.one_hot(labels, classes, dtype=logits.dtype) if hard else labels
    return optax.softmax_cross_entropy(logits, optax.smooth_labels(probabilities, smoothing))


def correct(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Whether each image's largest logit is its label's, or its most probable class's: bool `[N]`.

    Args:
      logits: float32 `[N, K]`.
      labels: as for `cross_entropy`. Of equal probabilities the first class counts.
    """
    return logits.argmax(-1) == (labels if _are_classes(logits, labels) else labels.argmax(-1))


def _are_classes(logits: jax.Array, labels: jax.Array) -> bool:
    """Whether labels are classes; else they are probabilities."""
    if jnp.issubdtype(labels.dtype, jnp.integer):
        assert labels.shape == logits.shape[:-1], (labels.shape, logits.shape)
        return True
    assert labels.shape == logits.shape, (labels.shape, logits.shape)
    return False
