"""Test that max and average pooling equal Flax Linen's pooling."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cifar_jax import ops

CASES = [
    ((2, 8, 8, 5), (2, 2)),
    ((1, 7, 9, 3), (2, 2)),
    ((3, 2, 2, 1), (2, 2)),
    ((1, 7, 9, 3), (1, 1)),
]
POOLS = [(ops.max_pool, nn.max_pool), (ops.avg_pool, nn.avg_pool)]


@pytest.mark.usefixtures("each_platform")
@pytest.mark.parametrize(("shape", "strides"), CASES)
@pytest.mark.parametrize(("pool", "reference"), POOLS, ids=["max", "average"])
def test_pooling_equals_linen(
    pool: Callable[..., Any],
    reference: Callable[..., Any],
    shape: tuple[int, ...],
    strides: tuple[int, int],
) -> None:
    x = jnp.asarray(np.random.default_rng(0).standard_normal(shape), jnp.float32)

    @partial(jax.jit, static_argnums=0)
    def run(pool: Callable[..., Any], x: jax.Array) -> tuple[jax.Array, jax.Array]:
        y, vjp = jax.vjp(lambda x: pool(x, (2, 2), strides), x)
        return y, vjp(jnp.cos(jnp.arange(y.size)).reshape(y.shape))[0]

    for actual, expected in zip(run(pool, x), run(reference, x), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.usefixtures("each_platform")
def test_first_of_equal_pixels_gets_the_gradient() -> None:
    x = jnp.array([[0.0, 5.0], [5.0, 5.0]])[None, :, :, None]
    gradient = jax.grad(lambda x: ops.max_pool(x, (2, 2), (2, 2)).sum())(x)
    np.testing.assert_array_equal(gradient[0, :, :, 0], [[0, 1], [0, 0]])


@pytest.mark.usefixtures("each_platform")
@pytest.mark.parametrize("pool", [ops.max_pool, ops.avg_pool])
def test_pooling_keeps_bfloat16(pool: Callable[..., Any]) -> None:
    x = jnp.ones((2, 4, 4, 3), "bfloat16")

    def run(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        y, vjp = jax.vjp(lambda x: pool(x, (2, 2), (2, 2)), x)
        return y, vjp(y)[0]

    y, dx = jax.eval_shape(run, x)
    assert y.dtype == dx.dtype == jnp.bfloat16


def test_global_average() -> None:
    x = jnp.arange(24.0).reshape(1, 3, 4, 2)
    np.testing.assert_allclose(ops.global_avg_pool(x), [[11, 12]])
