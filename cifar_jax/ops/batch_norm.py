"""Batch normalization of a training batch, with a gradient that passes twice over memory.

The statistics take two passes over the batch on CPU, and one pass on accelerators. On accelerators,
memory bandwidth limits the speed. With one pass, several devices also exchange data once per layer
instead of twice.
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
    """Normalize a batch over all axes but the last. Reference: `flax.linen.BatchNorm`.

    The gradient needs only one array of the input's size: the input. Automatic differentiation
    would store and read several arrays of this size.

    Args:
      x: the batch, `[..., C]`.
      scale: factor of each channel, `[C]`.
      bias: offset of each channel, `[C]`.
      epsilon: a small constant that is added to the variance.

    Returns:
      The normalized batch in the type of `x`, and the mean and biased variance of `x`, `[C]`, in
      float32 or wider.
    """
    return _batch_norm(x, scale, bias, epsilon, forced_platform())


# The inlined jit lets JAX trace equal shapes only once; see `ops/conv.py`.
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
    """Return the mean and the biased variance E[(x - mean)²] of each channel, both `[C]`."""
    axes = tuple(range(x.ndim - 1))
    mean = x.mean(axes)
    return mean, jnp.square(x - mean).mean(axes)


def one_pass(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the mean and the biased variance E[x²] - E[x]² of each channel, both `[C]`.

    Linen uses the same formula. The relative error of the variance grows with the square of mean /
    standard deviation. If the mean is ten standard deviations, two decimal digits are lost.
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
    # dx is gain·(dy - mean(dy) - x̂·mean(dy·x̂)), plus the gradient through the mean and variance
    # outputs. The code computes gain·dy + slope·x + offset, with one coefficient per channel.
    gain = scale * inverse
    slope = (2 * dvar - gain * inverse * dscale) / count
    offset = (dmean - gain * dbias) / count - slope * mean
    dx = gain * dy + slope * wide + offset
    return dx.astype(x.dtype), dscale.astype(scale.dtype), dbias.astype(bias.dtype)


_batch_norm.defvjp(_forward, _backward)


def _wide_type(x: jax.Array) -> jnp.dtype:
    return jnp.promote_types(x.dtype, jnp.float32)
