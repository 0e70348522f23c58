"""Test the losses against their definitions in NumPy."""

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cifar_jax.training.losses import correct, cross_entropy


@pytest.fixture
def logits() -> np.ndarray:
    return 5 * np.random.default_rng(0).normal(size=(16, 10)).astype(np.float32)


@pytest.fixture
def hard() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 10, 16, np.int32)


@pytest.fixture
def soft() -> np.ndarray:
    return np.random.default_rng(2).dirichlet(np.ones(10), 16).astype(np.float32)


def by_hand(logits: np.ndarray, probabilities: np.ndarray, smoothing: float) -> np.ndarray:
    """Return each image's cross-entropy with label smoothing, by PyTorch's formula."""
    logs = logits.astype(float) - np.log(np.exp(logits.astype(float)).sum(1, keepdims=True))
    target = (1 - smoothing) * probabilities + smoothing / logits.shape[1]
    return -(target * logs).sum(1)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.2, 1.0])
def test_cross_entropy_of_hard_and_soft_labels(
    logits: np.ndarray, hard: np.ndarray, soft: np.ndarray, smoothing: float
) -> None:
    for labels, probabilities in ((hard, np.eye(10)[hard]), (soft, soft)):
        losses = cross_entropy(jnp.asarray(logits), jnp.asarray(labels), smoothing)
        chex.assert_type(losses, jnp.float32)
        expected = by_hand(logits, probabilities, smoothing)
        np.testing.assert_allclose(losses, expected, rtol=1e-5)


def test_loss_and_gradient_equal_optax_bit_for_bit(logits: np.ndarray, hard: np.ndarray) -> None:
    def evaluate(loss: Callable[..., jax.Array]) -> Any:
        mean = jax.jit(jax.value_and_grad(lambda *arguments: loss(*arguments).mean()))
        return loss(logits, jnp.asarray(hard)), mean(logits, hard)

    reference = optax.softmax_cross_entropy_with_integer_labels
    chex.assert_trees_all_equal(evaluate(cross_entropy), evaluate(reference))


def test_large_logits_do_not_overflow() -> None:
    logits, labels = jnp.array([[1e4, 0.0, -1e4]]), jnp.array([[0.5, 0.5, 0.0]])
    np.testing.assert_allclose(cross_entropy(logits, labels), [5e3])
    smooth = cross_entropy(logits, jnp.array([1]), 0.3)
    np.testing.assert_allclose(smooth, 0.8 * 1e4 + 0.1 * 2e4)


def test_correct_compares_with_the_most_probable_class(
    logits: np.ndarray, hard: np.ndarray, soft: np.ndarray
) -> None:
    predicted = logits.argmax(1)
    hard = np.where(np.arange(16) < 8, predicted, hard)
    x = jnp.asarray(logits)
    np.testing.assert_array_equal(correct(x, jnp.asarray(hard)), predicted == hard)
    np.testing.assert_array_equal(correct(x, jnp.asarray(soft)), predicted == soft.argmax(1))
    np.testing.assert_array_equal(correct(x, jnp.asarray(np.eye(10)[hard])), predicted == hard)


@pytest.mark.parametrize("labels", [jnp.zeros((16, 10), jnp.int32), jnp.zeros(16)])
def test_labels_of_another_shape_are_refused(logits: np.ndarray, labels: jax.Array) -> None:
    with pytest.raises(AssertionError):
        cross_entropy(jnp.asarray(logits), labels)
