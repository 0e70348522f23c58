"""Depthwise convolution as shifted products, one for each tap of the kernel.

Plain reference: `jax.lax.conv_general_dilated` with `feature_group_count` = channels.
"""

import jax
import jax.numpy as jnp

from cifar_jax.ops.im2col import Pads, Pair, gather_taps, output_size, scatter_taps


def conv(x: jax.Array, kernel: jax.Array, strides: Pair, padding: Pads) -> jax.Array:
    """Convolution of [N, H, W, C] with [h, w, 1, C], each channel by itself."""
    size = kernel.shape[0], kernel.shape[1]
    taps = gather_taps(x, size, strides, padding, output_size(x, size, strides, padding))
    total = taps[0][0] * kernel[0, 0, 0]
    for i in range(size[0]):
        for j in range(size[1]):
            if i or j:
                total = total + taps[i][j] * kernel[i, j, 0]
    return total


def input_gradient(
    dy: jax.Array, kernel: jax.Array, strides: Pair, padding: Pads, size: Pair
) -> jax.Array:
    """Gradient [N, H, W, C] of `conv`'s input, of `size` (H, W)."""

    def tap(dy: jax.Array, i: int, j: int) -> jax.Array:
        return dy * kernel[i, j, 0]

    return scatter_taps(dy, tap, (kernel.shape[0], kernel.shape[1]), strides, padding, size)


def kernel_gradient(
    x: jax.Array, dy: jax.Array, size: Pair, strides: Pair, padding: Pads
) -> jax.Array:
    """Gradient [h, w, 1, C] of `conv`'s kernel, given that of its output [N, H', W', C].

    Rows of the image are added up in groups, written out as sums, which vectorise over channels
    where a fused reduction does not; what remains goes through a matrix product with ones.
    """
    n, height, width, c = dy.shape
    group = next(g for g in (8, 7, 6, 5, 4, 3, 2, 1) if height % g == 0)
    taps = gather_taps(x, size, strides, padding, (height, width))

    def grouped(x: jax.Array) -> list[jax.Array]:
        x = x.reshape(n, group, height // group, width, c)
        return [x[:, i] for i in range(group)]

    dys = grouped(dy)

    def sums(tap: jax.Array) -> jax.Array:
        total: jax.Array | None = None
        for a, b in zip(grouped(tap), dys, strict=True):
            total = a * b if total is None else total + a * b
        assert total is not None
        return total.reshape(-1, c)

    ones = jnp.ones((1, n * (height // group) * width), x.dtype)
    rows = [ones @ sums(tap) for row in taps for tap in row]
    return jnp.concatenate(rows).reshape(*size, 1, c)
