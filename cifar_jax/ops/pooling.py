"""Pooling over windows of NHWC images, without padding.

On CPU, windows that do not overlap are pooled as the maximum or the sum of strided slices. XLA's
window reductions are slow on CPU, and the scatter in their gradient is even slower.
References: `flax.linen.max_pool` and `flax.linen.avg_pool`.
"""

from functools import partial, reduce
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from cifar_jax.ops.im2col import Pair
from cifar_jax.ops.platform import dispatch, forced_platform


def max_pool(x: jax.Array, window_shape: Pair, strides: Pair) -> jax.Array:
    """Return the maximum of each window: `[N, H, W, C]` to `[N, H', W', C]`.

    If several pixels of a window share the maximum, the first one in row order gets the gradient,
    as in PyTorch.
    """
    if not _has_cpu_path(x, window_shape, strides):
        return nn.max_pool(x, window_shape, strides)
    return _max_pool(x, window_shape, forced_platform())


def avg_pool(x: jax.Array, window_shape: Pair, strides: Pair) -> jax.Array:
    """Return the mean of each window: `[N, H, W, C]` to `[N, H', W', C]`."""
    if not _has_cpu_path(x, window_shape, strides):
        return nn.avg_pool(x, window_shape, strides)

    def cpu(x: jax.Array) -> jax.Array:
        total = reduce(jnp.add, _window_pixels(x, window_shape))
        return total / (window_shape[0] * window_shape[1])

    default = partial(nn.avg_pool, window_shape=window_shape, strides=strides)
    return dispatch(forced_platform(), x, cpu=cpu, default=default)


def global_avg_pool(x: jax.Array) -> jax.Array:
    """Return the mean over the pixels of each image: `[N, H, W, C]` to `[N, C]`."""
    return x.mean(axis=(1, 2))


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _max_pool(x: jax.Array, window: Pair, platform: str | None) -> jax.Array:
    return dispatch(
        platform,
        x,
        cpu=lambda x: reduce(jnp.maximum, _window_pixels(x, window)),
        default=partial(nn.max_pool, window_shape=window, strides=window),
    )


def _forward(
    x: jax.Array, window: Pair, platform: str | None
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    y: Any = _max_pool(x, window, platform)
    return y, (x, y)


def _backward(
    window: Pair, platform: str | None, residuals: tuple[jax.Array, jax.Array], dy: jax.Array
) -> tuple[jax.Array]:
    def cpu(x: jax.Array, y: jax.Array, dy: jax.Array) -> jax.Array:
        # Find the position of the maximum in each window, then compare it with the position of each
        # pixel. A `jnp.stack` of one gradient array per position would be slower, because XLA
        # compiles the stack to a branch for each pixel.
        pixels = _window_pixels(x, window)
        argmax = jnp.full(y.shape, len(pixels) - 1)
        for index in reversed(range(len(pixels) - 1)):
            argmax = jnp.where(pixels[index] == y, index, argmax)
        n, rows, columns, c = y.shape
        # NumPy makes the indices a constant. If JAX computed them, XLA would store an array of
        # indices as large as x.
        indices = np.arange(len(pixels), dtype=np.int32).reshape(1, 1, window[0], 1, window[1], 1)
        is_max = argmax[:, :, None, :, None] == indices
        dx = jnp.where(is_max, dy[:, :, None, :, None], jnp.zeros((), dy.dtype))
        dx = dx.reshape(n, rows * window[0], columns * window[1], c)
        rest = x.shape[1] - dx.shape[1], x.shape[2] - dx.shape[2]
        return jnp.pad(dx, ((0, 0), (0, rest[0]), (0, rest[1]), (0, 0)))

    def default(x: jax.Array, y: jax.Array, dy: jax.Array) -> jax.Array:
        del y
        return jax.vjp(lambda x: nn.max_pool(x, window, window), x)[1](dy)[0]

    return (dispatch(platform, *residuals, dy, cpu=cpu, default=default),)


_max_pool.defvjp(_forward, _backward)


def _has_cpu_path(x: jax.Array, window: Pair, strides: Pair) -> bool:
    return (
        x.ndim == 4
        and tuple(window) == tuple(strides)
        and window[0] * window[1] <= 16
        and x.shape[1] >= window[0]
        and x.shape[2] >= window[1]
    )


def _window_pixels(x: jax.Array, window: Pair) -> list[jax.Array]:
    """Return an array `[N, H', W', C]` for each of the h·w pixels of a window, in row order."""
    n, height, width, c = x.shape
    rows, columns = height // window[0], width // window[1]
    x = x[:, : rows * window[0], : columns * window[1]]
    x = x.reshape(n, rows, window[0], columns, window[1], c)
    return [x[:, :, i, :, j] for i in range(window[0]) for j in range(window[1])]
