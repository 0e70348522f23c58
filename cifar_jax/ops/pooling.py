"""Pooling over windows of NHWC images, without padding.

Windows that tile the image are pooled as the maximum or sum of strided slices: XLA's own window
reductions, and above all the scatter of their gradient, are slow on CPU. Plain references:
`flax.linen.max_pool` and `flax.linen.avg_pool`.
"""

from functools import partial, reduce
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from cifar_jax.ops import platform

Pair = tuple[int, int]


def max_pool(x: jax.Array, window_shape: Pair, strides: Pair) -> jax.Array:
    """Largest value of each window: [N, H, W, C] -> [N, H', W', C].

    On ties the first pixel of the window, by rows, gets the gradient, as in PyTorch.
    """
    if not _tiles(x, window_shape, strides):
        return nn.max_pool(x, window_shape, strides)
    return _max_pool(x, window_shape, platform.named())


def avg_pool(x: jax.Array, window_shape: Pair, strides: Pair) -> jax.Array:
    """Mean of each window: [N, H, W, C] -> [N, H', W', C]."""
    if not _tiles(x, window_shape, strides):
        return nn.avg_pool(x, window_shape, strides)

    def fast(x: jax.Array) -> jax.Array:
        total = reduce(jnp.add, _pixels(x, window_shape))
        return total / (window_shape[0] * window_shape[1])

    plain = partial(nn.avg_pool, window_shape=window_shape, strides=strides)
    return platform.choose(platform.named(), x, cpu=fast, default=plain)


def global_avg_pool(x: jax.Array) -> jax.Array:
    """Mean over each image's pixels: [N, H, W, C] -> [N, C]."""
    return x.mean(axis=(1, 2))


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _max_pool(x: jax.Array, window: Pair, named: str | None) -> jax.Array:
    return platform.choose(
        named,
        x,
        cpu=lambda x: reduce(jnp.maximum, _pixels(x, window)),
        default=partial(nn.max_pool, window_shape=window, strides=window),
    )


def _forward(
    x: jax.Array, window: Pair, named: str | None
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    y: Any = _max_pool(x, window, named)
    return y, (x, y)


def _backward(
    window: Pair, named: str | None, residuals: tuple[jax.Array, jax.Array], dy: jax.Array
) -> tuple[jax.Array]:
    def fast(x: jax.Array, y: jax.Array, dy: jax.Array) -> jax.Array:
        # Where in its window each maximum is, and for each pixel whether that is where it is:
        # putting the pixels together one by one would be a branch for each in the inner loop.
        pixels = _pixels(x, window)
        place = jnp.full(y.shape, len(pixels) - 1)
        for number in reversed(range(len(pixels) - 1)):
            place = jnp.where(pixels[number] == y, number, place)
        n, down, across, c = y.shape
        # A table: arithmetic on indices would be kept between steps, as an array of x's size.
        numbers = np.arange(len(pixels), dtype=np.int32).reshape(1, 1, window[0], 1, window[1], 1)
        here = place[:, :, None, :, None] == numbers
        dx = jnp.where(here, dy[:, :, None, :, None], jnp.zeros((), dy.dtype))
        dx = dx.reshape(n, down * window[0], across * window[1], c)
        rest = x.shape[1] - dx.shape[1], x.shape[2] - dx.shape[2]
        return jnp.pad(dx, ((0, 0), (0, rest[0]), (0, rest[1]), (0, 0)))

    def plain(x: jax.Array, y: jax.Array, dy: jax.Array) -> jax.Array:
        del y
        return jax.vjp(lambda x: nn.max_pool(x, window, window), x)[1](dy)[0]

    return (platform.choose(named, *residuals, dy, cpu=fast, default=plain),)


_max_pool.defvjp(_forward, _backward)


def _tiles(x: jax.Array, window: Pair, strides: Pair) -> bool:
    return (
        x.ndim == 4
        and tuple(window) == tuple(strides)
        and window[0] * window[1] <= 16
        and x.shape[1] >= window[0]
        and x.shape[2] >= window[1]
    )


def _pixels(x: jax.Array, window: Pair) -> list[jax.Array]:
    """The pixels at each place of the windows, by rows: h·w times [N, H', W', C]."""
    n, height, width, c = x.shape
    down, across = height // window[0], width // window[1]
    x = x[:, : down * window[0], : across * window[1]]
    x = x.reshape(n, down, window[0], across, window[1], c)
    return [x[:, :, i, :, j] for i in range(window[0]) for j in range(window[1])]
