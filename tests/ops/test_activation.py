"""The rectifier against `jax.nn`'s, which has other gradients of its own."""

import jax
import jax.numpy as jnp
import numpy as np

from cifar_jax import ops


def test_values_and_gradients_are_those_of_jax_nn():
    x = jnp.array([-2.0, -0.0, 0.0, 1e-30, 3.0, jnp.inf])
    for ours, theirs in zip(run(ops.relu, x), run(jax.nn.relu, x), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_nan_is_not_hidden():
    assert jnp.isnan(ops.relu(jnp.array([jnp.nan]))).all()


def run(f, x):
    y, vjp = jax.vjp(f, x)
    return y, *vjp(jnp.arange(1.0, 1 + x.size))
