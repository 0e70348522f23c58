"""Test batch normalization and its gradients against formulas in NumPy."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cifar_jax import ops
from cifar_jax.ops.batch_norm import one_pass

EPSILON = 1e-5


def formula(x: Any, scale: Any, bias: Any) -> tuple[Any, Any, Any]:
    """Return the output, mean and variance of batch normalization. Arguments may be complex."""
    axes = tuple(range(x.ndim - 1))
    mean = x.sum(axes) / (x.size // x.shape[-1])
    var = ((x - mean) ** 2).sum(axes) / (x.size // x.shape[-1])
    return (x - mean) / np.sqrt(var + EPSILON) * scale + bias, mean, var


def formula_gradients(arguments: list[Any], directions: list[Any]) -> list[Any]:
    """Return the gradients of Σ output·direction with respect to each argument.

    The complex-step formula for the derivative of f at t is Im f(t + ih)/h with a tiny h. The
    formula contains no subtraction, so the result is exact up to rounding.
    """
    h = 1e-30
    gradients = []
    for position, argument in enumerate(arguments):
        gradient = np.zeros(argument.shape)
        for index in np.ndindex(argument.shape):
            moved = [a.astype(complex) for a in arguments]
            moved[position][index] += 1j * h
            total = sum((y * d).sum() for y, d in zip(formula(*moved), directions, strict=True))
            gradient[index] = total.imag / h
        gradients.append(gradient)
    return gradients


def run(inputs: list[jax.Array], cotangents: Any) -> list[jax.Array]:
    """Return the outputs of `batch_norm` and the gradients of its inputs."""
    outputs, vjp = jax.vjp(lambda *arguments: ops.batch_norm(*arguments, EPSILON), *inputs)
    return [*outputs, *vjp(cotangents)]


# With oneDNN, the sums are float32 for all types.
@pytest.mark.parametrize(
    ("each_platform", "dtype", "tolerance"),
    [
        *(("cpu", "float64", 1e-11), ("cpu", "float32", 1e-4), ("cpu-onednn", "float32", 1e-4)),
        *(("accelerator", "float64", 1e-11), ("accelerator", "float32", 1e-4)),
    ],
    indirect=["each_platform"],
)
@pytest.mark.parametrize("shape", [(4, 5, 3, 7), (1, 2, 2, 3), (16, 4)])
def test_batch_norm_equals_the_formula(
    each_platform: None, shape: tuple[int, ...], dtype: str, tolerance: float
) -> None:
    random = np.random.default_rng(0)
    arguments = [3 + random.standard_normal(shape), *random.standard_normal((2, shape[-1]))]
    directions = [random.standard_normal(shape), *random.standard_normal((2, shape[-1]))]
    expected = [*formula(*arguments), *formula_gradients(arguments, directions)]
    with jax.enable_x64(True):
        inputs = [jnp.asarray(a, dtype) for a in arguments]
        cotangents = tuple(jnp.asarray(d, dtype) for d in directions)
        actual = jax.jit(lambda *arguments: run(*arguments))(inputs, cotangents)
    for a, b in zip(actual, expected, strict=True):
        assert a.dtype == dtype
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("each_platform", ["cpu", "cpu-onednn"], indirect=True)
@pytest.mark.parametrize("shape", [(32, 8, 8, 3), (8, 32, 32, 16)])
def test_statistics_on_a_cpu_are_accurate_for_a_large_mean(
    each_platform: None, shape: tuple[int, ...]
) -> None:
    """In float32, the formula E[x²] - E[x]² would lose all significant digits."""
    random = np.random.default_rng(0)
    x = random.normal(1000, 0.1, shape).astype(np.float32)
    dy = random.standard_normal(shape).astype(np.float32)
    ones = jnp.ones(shape[-1])
    zeros = 0 * ones
    _, mean, var, _, dscale, _ = run([jnp.asarray(x), ones, zeros], (jnp.asarray(dy), zeros, zeros))
    np.testing.assert_allclose(mean, np.float64(x).mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(var, np.float64(x).var((0, 1, 2)), rtol=0.01)
    normalized = formula(np.float64(x), np.ones(shape[-1]), 0)[0]
    expected = (dy * normalized).sum((0, 1, 2))
    np.testing.assert_allclose(dscale, expected, atol=0.01 * np.sqrt(dy.size / shape[-1]))


def test_variance_in_one_pass_is_not_negative() -> None:
    _, var = one_pass(jnp.full((32, 8, 8, 5), 1 / 3))
    assert (var >= 0).all()


@pytest.mark.parametrize("each_platform", ["cpu", "cpu-onednn", "accelerator"], indirect=True)
def test_bfloat16_has_float32_statistics(each_platform: None) -> None:
    x, ones = jnp.ones((8, 4, 4, 3), "bfloat16"), jnp.ones(3)
    y, mean, var, dx, *_ = jax.eval_shape(run, [x, ones, ones], (x, ones, ones))
    assert y.dtype == dx.dtype == jnp.bfloat16
    assert mean.dtype == var.dtype == jnp.float32
