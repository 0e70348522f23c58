"""Test that the package's ReLU equals `jax.nn.relu`."""

import jax
import jax.numpy as jnp
import numpy as np

from cifar_jax import ops


def test_relu_equals_jax_nn() -> None:
    x = jnp.array([-2.0, -0.0, 0.0, 1e-30, 3.0, jnp.inf])
    dy = jnp.arange(1.0, 1 + x.size)
    y, vjp = jax.vjp(ops.relu, x)
    expected, expected_vjp = jax.vjp(jax.nn.relu, x)
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal(vjp(dy)[0], expected_vjp(dy)[0])


def test_relu_keeps_nan() -> None:
    assert jnp.isnan(ops.relu(jnp.array([jnp.nan]))).all()
