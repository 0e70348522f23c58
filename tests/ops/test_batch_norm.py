"""Batch normalization against the formula in NumPy, its gradient against complex steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cifar_jax import ops
from cifar_jax.ops.batch_norm import one_pass, two_passes

EPSILON = 1e-5


def formula(x, scale, bias):
    """In NumPy, and analytic: complex numbers go through."""
    axes = tuple(range(x.ndim - 1))
    mean = x.sum(axes) / (x.size // x.shape[-1])
    var = ((x - mean) ** 2).sum(axes) / (x.size // x.shape[-1])
    return (x - mean) / np.sqrt(var + EPSILON) * scale + bias, mean, var


def gradients(arguments, directions):
    """Of Σ output·direction with respect to each argument, exact to rounding: the derivative of an
    analytic f at t is Im f(t + ih)/h, which subtracts nothing, so that h may be as small as here.
    """
    h = 1e-30
    found = []
    for place, argument in enumerate(arguments):
        gradient = np.zeros(argument.shape)
        for index in np.ndindex(argument.shape):
            moved = [a.astype(complex) for a in arguments]
            moved[place][index] += 1j * h
            total = sum((y * d).sum() for y, d in zip(formula(*moved), directions, strict=True))
            gradient[index] = total.imag / h
        found.append(gradient)
    return found


@pytest.mark.usefixtures("each_platform")
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-11), ("float32", 1e-4)])
@pytest.mark.parametrize("shape", [(4, 5, 3, 7), (1, 2, 2, 3), (16, 4)])
def test_values_and_gradients_are_those_of_the_formula(shape, dtype, tolerance):
    random = np.random.default_rng(0)
    arguments = [3 + random.standard_normal(shape), *random.standard_normal((2, shape[-1]))]
    directions = [random.standard_normal(shape), *random.standard_normal((2, shape[-1]))]
    expected = [*formula(*arguments), *gradients(arguments, directions)]
    with jax.enable_x64(True):
        ours = [jnp.asarray(a, dtype) for a in arguments]
        outputs, vjp = jax.vjp(lambda *args: ops.batch_norm(*args, EPSILON), *ours)
        actual = [*outputs, *vjp(tuple(jnp.asarray(d, dtype) for d in directions))]
    for a, b in zip(actual, expected, strict=True):
        assert a.dtype == dtype
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


def test_normalizes_each_channel():
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


@pytest.mark.usefixtures("each_platform")
def test_bfloat16_keeps_statistics_in_float32():
    x = jax.random.normal(jax.random.key(0), (8, 4, 4, 3), "bfloat16")
    (y, mean, var), vjp = jax.vjp(lambda x: ops.batch_norm(x, jnp.ones(3), jnp.zeros(3), 1e-5), x)
    assert y.dtype == jnp.bfloat16
    assert mean.dtype == var.dtype == jnp.float32
    assert vjp((y, mean, var))[0].dtype == jnp.bfloat16
