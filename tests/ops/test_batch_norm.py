"""The hand-written gradient of batch normalisation against that of the formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cifar_jax import ops
from cifar_jax.ops.batch_norm import one_pass, two_passes


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-12), ("float32", 1e-4)])
@pytest.mark.parametrize("shape", [(4, 5, 3, 7), (1, 2, 2, 3), (16, 4)])
def test_gradients_equal_autodiff(shape, dtype, tolerance):
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(0), 6)
        x = 3 + jax.random.normal(keys[0], shape, dtype)
        scale, bias, dmean, dvar = (jax.random.normal(key, shape[-1:], dtype) for key in keys[1:5])
        dy = jax.random.normal(keys[5], shape, dtype)

        def run(f):
            outputs, vjp = jax.vjp(lambda *args: f(*args, 1e-5), x, scale, bias)
            return *outputs, *vjp((dy, dmean, dvar))

        for a, b in zip(run(ops.batch_norm), run(ops.batch_norm.__wrapped__), strict=True):
            assert a.dtype == dtype
            np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


def test_normalises_each_channel():
    x = 100 + jax.random.normal(jax.random.key(0), (8, 4, 4, 3))
    y, mean, var = ops.batch_norm(x, jnp.ones(3), jnp.zeros(3), 1e-5)
    np.testing.assert_allclose(y.mean((0, 1, 2)), 0, atol=1e-4)
    np.testing.assert_allclose(y.std((0, 1, 2)), 1, rtol=1e-4)
    np.testing.assert_allclose(mean, x.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(var, x.var((0, 1, 2)), rtol=1e-4)


def test_statistics_in_one_pass_are_those_in_two():
    x = 3 + 2 * jax.random.normal(jax.random.key(0), (32, 8, 8, 5))
    for one, two in zip(one_pass(x), two_passes(x), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-5)


def test_variance_in_one_pass_is_never_negative():
    _, var = one_pass(jnp.full((32, 8, 8, 5), 1 / 3))
    assert (var >= 0).all()


def test_bfloat16_keeps_statistics_in_float32():
    x = jax.random.normal(jax.random.key(0), (8, 4, 4, 3), "bfloat16")
    (y, mean, var), vjp = jax.vjp(lambda x: ops.batch_norm(x, jnp.ones(3), jnp.zeros(3), 1e-5), x)
    assert y.dtype == jnp.bfloat16
    assert mean.dtype == var.dtype == jnp.float32
    assert vjp((y, mean, var))[0].dtype == jnp.bfloat16
