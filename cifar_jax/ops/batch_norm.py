"""Batch normalization of a training batch, with a gradient that reads memory twice.

The statistics take two passes over the batch on CPU and one pass elsewhere. On accelerators memory
bandwidth limits a step, and with one pass several devices exchange data once per layer instead of
twice.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from cifar_jax.ops.platform import dispatch, forced_platform

Residuals = tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array]
Outputs = tuple[jax.Array, jax.Array, jax.Array]


def batch_norm(x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float) -> Outputs:
    """Normalize over all axes but the last. Reference: `flax.linen.BatchNorm`.

    Only the input is stored for the gradient. Differentiating the formula would store and read
    several arrays of the input's size.

    Args:
      x: `[..., C]`.
      scale: `[C]`.
      bias: `[C]`.
      epsilon: added to the variance.

    Returns:
      The normalized batch in the type of `x`; its mean and its biased variance, `[C]`, in float32
      or wider.
    """
    return _batch_norm(x, scale, bias, epsilon, forced_platform())


# Under an inlined jit so that equal shapes are traced once; see `ops/conv.py`.
@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
@partial(jax.jit, static_argnums=(3, 4), inline=True)
def _batch_norm(
    x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float, platform: str | None
) -> Outputs:
    wide = x.astype(_wide_type(x))
    mean, var = dispatch(platform, wide, cpu=two_passes, default=one_pass)
    gain = scale * lax.rsqrt(var + epsilon)
    y = wide * gain + (bias - mean * gain)
    return y.astype(x.dtype), mean, var


def two_passes(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return mean and biased variance `[C]` of `[..., C]`, the variance as E[(x - mean)²]."""
    axes = tuple(range(x.ndim - 1))
    mean = x.mean(axes)
    return mean, jnp.square(x - mean).mean(axes)


def one_pass(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return mean and biased variance `[C]` of `[..., C]`, the variance as E[x²] - E[x]².

    Linen uses the same formula. Its relative error grows with the square of mean / deviation: if
    the mean is ten deviations, two decimal digits are lost.
    """
    axes = tuple(range(x.ndim - 1))
    mean = x.mean(axes)
    return mean, jnp.maximum(jnp.square(x).mean(axes) - jnp.square(mean), 0)


def _forward(
    x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float, platform: str | None
) -> tuple[Outputs, Residuals]:
    outputs: Any = _batch_norm(x, scale, bias, epsilon, platform)
    _, mean, var = outputs
    return outputs, (x, scale, bias, mean, var)


@partial(jax.jit, static_argnums=(0, 1), inline=True)
def _backward(
    epsilon: float, platform: str | None, residuals: Residuals, gradients: Outputs
) -> Outputs:
    del platform  # The gradient is the same on all platforms.
    x, scale, bias, mean, var = residuals
    dy, dmean, dvar = gradients
    axes = tuple(range(x.ndim - 1))
    count = x.size // x.shape[-1]
    wide, dy = x.astype(_wide_type(x)), dy.astype(_wide_type(x))
    inverse = lax.rsqrt(var + epsilon)
    dbias = dy.sum(axes)
    dscale = (dy * (wide - mean)).sum(axes) * inverse
    # dx = gain·(dy - mean(dy) - x̂·mean(dy·x̂)) + the gradient through mean and variance, written
    # as a linear combination of dy and x with one coefficient per channel.
    gain = scale * inverse
    slope = (2 * dvar - gain * inverse * dscale) / count
    offset = (dmean - gain * dbias) / count - slope * mean
    dx = gain * dy + slope * wide + offset
    return dx.astype(x.dtype), dscale.astype(scale.dtype), dbias.astype(bias.dtype)


_batch_norm.defvjp(_forward, _backward)


def _wide_type(x: jax.Array) -> jnp.dtype:
    return jnp.promote_types(x.dtype, jnp.float32)
