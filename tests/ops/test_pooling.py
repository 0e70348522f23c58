"""The CPU paths of pooling against Linen's."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cifar_jax import ops

SHAPES = [(2, 8, 8, 5), (1, 7, 9, 3), (3, 2, 2, 1)]
KINDS = [(ops.max_pool, nn.max_pool), (ops.avg_pool, nn.avg_pool)]


@pytest.mark.usefixtures("each_platform")
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("strides", [(2, 2), (1, 1)])
@pytest.mark.parametrize(("pool", "plain"), KINDS, ids=["max", "average"])
def test_equals_linen(pool, plain, shape, strides):
    x = jax.random.normal(jax.random.key(0), shape)

    def both(pool):
        y, vjp = jax.vjp(lambda x: pool(x, (2, 2), strides), x)
        return y, vjp(jnp.cos(jnp.arange(y.size)).reshape(y.shape))[0]

    for a, b in zip(both(pool), both(plain), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.usefixtures("each_platform")
def test_tied_maximum_sends_its_gradient_to_the_first_pixel():
    x = jnp.array([[0.0, 5.0], [5.0, 5.0]])[None, :, :, None]
    gradient = jax.grad(lambda x: ops.max_pool(x, (2, 2), (2, 2)).sum())(x)
    np.testing.assert_array_equal(gradient[0, :, :, 0], [[0, 1], [0, 0]])


@pytest.mark.usefixtures("each_platform")
@pytest.mark.parametrize("pool", [ops.max_pool, ops.avg_pool])
def test_bfloat16(pool):
    x = jax.random.normal(jax.random.key(0), (2, 4, 4, 3), "bfloat16")
    y, vjp = jax.vjp(lambda x: pool(x, (2, 2), (2, 2)), x)
    assert y.dtype == vjp(y)[0].dtype == jnp.bfloat16


def test_global_average():
    x = jnp.arange(24.0).reshape(1, 3, 4, 2)
    np.testing.assert_allclose(ops.global_avg_pool(x), [[11, 12]])


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_accelerators_get_window_reductions(platform):
    x = jnp.ones((2, 4, 4, 3))
    gradient = jax.jit(jax.grad(lambda x: ops.max_pool(x, (2, 2), (2, 2)).sum()))
    module = jax.export.export(gradient, platforms=[platform])(x).mlir_module()
    assert "select_and_scatter" in module
