"""Batch normalization of a training batch.

The backward pass reads the batch twice. The forward pass reads the batch twice on CPUs and once on
accelerators, where memory bandwidth limits the speed. If the batch is read once, several devices
also exchange data only once per layer.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from cifar_jax.ops.pixel_sums import pixel_sums
from cifar_jax.ops.platform import dispatch, forced_platform

Residuals = tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array]
Outputs = tuple[jax.Array, jax.Array, jax.Array]


def batch_norm(x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float) -> Outputs:
    """Normalize a batch over all axes but the last. Reference: `flax.linen.BatchNorm`.

    The forward pass stores only the input for the gradient. Automatic differentiation would store
    and read several arrays of the size of the input.

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


# With an inlined jit, JAX traces the function only once per shape; see `ops/conv.py`.
@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
@partial(jax.jit, static_argnums=(3, 4), inline=True)
def _batch_norm(
    x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float, platform: str | None
) -> Outputs:
    ways = {"cpu": two_passes, "cpu-onednn": shifted_pass, "default": one_pass}
    mean, var = dispatch(platform, x, **ways)
    wide = x.astype(_wide_type(x))
    gain = scale * lax.rsqrt(var + epsilon)
    y = wide * gain + (bias - mean * gain)
    return y.astype(x.dtype), mean, var


def two_passes(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the mean and the biased variance E[(x - mean)²] of each channel, both `[C]`."""
    axes = tuple(range(x.ndim - 1))
    x = x.astype(_wide_type(x))
    mean = x.mean(axes)
    return mean, jnp.square(x - mean).mean(axes)


def one_pass(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the mean and the biased variance E[x²] - E[x]² of each channel, both `[C]`.

    Linen uses the same formula. The relative error of the variance grows with the square of mean /
    standard deviation. If the mean is ten standard deviations, two decimal digits are lost.
    """
    axes = tuple(range(x.ndim - 1))
    x = x.astype(_wide_type(x))
    mean = x.mean(axes)
    return mean, jnp.maximum(jnp.square(x).mean(axes) - jnp.square(mean), 0)


def shifted_pass(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Compute the mean and the biased variance of each channel, both `[C]`, in blocks of images.

    The first pixel is subtracted from all pixels. The variance is then accurate even if the mean is
    many times the standard deviation.
    """
    first = x.reshape(-1, x.shape[-1])[0].astype(jnp.float32)

    def shifted(rows: Sequence[jax.Array]) -> jax.Array:
        return rows[0].astype(jnp.float32) - first

    sums = pixel_sums([shifted, lambda rows: jnp.square(shifted(rows))], [_as_images(x)])
    count = x.size // x.shape[-1]
    mean, square = sums[0] / count, sums[1] / count
    return first + mean, jnp.maximum(square - jnp.square(mean), 0)


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
    x, scale, bias, mean, var = residuals
    dy, dmean, dvar = gradients
    count = x.size // x.shape[-1]
    inverse = lax.rsqrt(var + epsilon)
    ways = {"cpu": _sums, "cpu-onednn": _blocked_sums, "default": _sums}
    dbias, centered = dispatch(platform, x, dy, mean, **ways)
    dscale = centered * inverse
    wide, dy = x.astype(_wide_type(x)), dy.astype(_wide_type(x))
    gain = scale * inverse
    slope = (2 * dvar - gain * inverse * dscale) / count
    offset = (dmean - gain * dbias) / count - slope * mean
    dx = gain * dy + slope * wide + offset
    return dx.astype(x.dtype), dscale.astype(scale.dtype), dbias.astype(bias.dtype)


_batch_norm.defvjp(_forward, _backward)


def _wide_type(x: jax.Array) -> jnp.dtype:
    return jnp.promote_types(x.dtype, jnp.float32)


def _sums(x: jax.Array, dy: jax.Array, mean: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the sums of `dy` and of `dy * (x - mean)` for each channel, `[C]` each."""
    axes = tuple(range(x.ndim - 1))
    dy = dy.astype(_wide_type(x))
    return dy.sum(axes), (dy * (x.astype(dy.dtype) - mean)).sum(axes)


def _blocked_sums(x: jax.Array, dy: jax.Array, mean: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Compute the results of `_sums` in blocks of images."""

    def gradient(rows: Sequence[jax.Array]) -> jax.Array:
        return rows[1].astype(jnp.float32)

    def centered(rows: Sequence[jax.Array]) -> jax.Array:
        return gradient(rows) * (rows[0].astype(jnp.float32) - mean)

    dbias, total = pixel_sums([gradient, centered], [_as_images(x), _as_images(dy)])
    return dbias, total


def _as_images(x: jax.Array) -> jax.Array:
    """Reshape an array `[N, ..., C]` to `[N, H, W, C]`."""
    return x if x.ndim == 4 else x.reshape(len(x), -1, 1, x.shape[-1])
