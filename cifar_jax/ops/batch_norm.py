"""Batch normalization of a training batch, with its gradient in two passes over memory.

Its statistics take two passes on a CPU, and elsewhere one: there memory bounds a step, and several
devices then wait for each other once a layer instead of twice.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from cifar_jax.ops import platform


def batch_norm(
    x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Normalizes over all axes but the last: `[..., C]`, with scale and bias `[C]`.

    Returns the normalized batch in `x`'s type, and its mean and biased variance `[C]`, at least
    float32. Differentiating the formula instead keeps and reads several copies of the batch; this
    keeps the input alone. Plain reference: `flax.linen.BatchNorm`.
    """
    return _batch_norm(x, scale, bias, epsilon, platform.named())


# Under jit, and inlined, for the sake of tracing: see `ops/conv.py`.
@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
@partial(jax.jit, static_argnums=(3, 4), inline=True)
def _batch_norm(
    x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float, named: str | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    wide = x.astype(_wide(x))
    mean, var = platform.choose(named, wide, cpu=two_passes, default=one_pass)
    gain = scale * lax.rsqrt(var + epsilon)
    y = wide * gain + (bias - mean * gain)
    return y.astype(x.dtype), mean, var


def two_passes(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and biased variance `[C]` of `[..., C]`, the variance about the mean."""
    axes = tuple(range(x.ndim - 1))
    mean = x.mean(axes)
    return mean, jnp.square(x - mean).mean(axes)


def one_pass(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The same as E[x²] - E[x]², as Linen has it.

    The error of the variance grows by the square of mean over deviation: a mean of ten deviations
    costs two decimal digits.
    """
    axes = tuple(range(x.ndim - 1))
    mean = x.mean(axes)
    return mean, jnp.maximum(jnp.square(x).mean(axes) - jnp.square(mean), 0)


Residuals = tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array]
Outputs = tuple[jax.Array, jax.Array, jax.Array]


def _forward(
    x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float, named: str | None
) -> tuple[Outputs, Residuals]:
    outputs: Any = _batch_norm(x, scale, bias, epsilon, named)
    _, mean, var = outputs
    return outputs, (x, scale, bias, mean, var)


@partial(jax.jit, static_argnums=(0, 1), inline=True)
def _backward(
    epsilon: float, named: str | None, residuals: Residuals, gradients: Outputs
) -> Outputs:
    del named  # only the statistics have two forms
    x, scale, bias, mean, var = residuals
    dy, dmean, dvar = gradients
    axes = tuple(range(x.ndim - 1))
    count = x.size // x.shape[-1]
    wide, dy = x.astype(_wide(x)), dy.astype(_wide(x))
    inverse = lax.rsqrt(var + epsilon)
    dbias = dy.sum(axes)
    dscale = (dy * (wide - mean)).sum(axes) * inverse
    # dx = gain·(dy - mean(dy) - x̂·mean(dy·x̂)) + what comes through mean and variance, as one
    # linear combination of dy and x with a coefficient a channel.
    gain = scale * inverse
    slope = (2 * dvar - gain * inverse * dscale) / count
    offset = (dmean - gain * dbias) / count - slope * mean
    dx = gain * dy + slope * wide + offset
    return dx.astype(x.dtype), dscale.astype(scale.dtype), dbias.astype(bias.dtype)


_batch_norm.defvjp(_forward, _backward)


def _wide(x: jax.Array) -> jnp.dtype:
    return jnp.promote_types(x.dtype, jnp.float32)
