"""Depthwise convolution as a sum of shifted products, one for each element of the kernel.

Reference: `jax.lax.conv_general_dilated` with `feature_group_count` = channels.
"""

import jax
import jax.numpy as jnp

from cifar_jax.ops import direct
from cifar_jax.ops.im2col import Padding, Pair, gather_taps, output_size, scatter_taps
from cifar_jax.ops.pixel_sums import Term, pixel_sums


def conv(x: jax.Array, kernel: jax.Array, strides: Pair, padding: Padding) -> jax.Array:
    """Convolve each channel of images `[N, H, W, C]` with its own kernel in `[h, w, 1, C]`."""
    size = kernel.shape[0], kernel.shape[1]
    taps = gather_taps(x, size, strides, padding, output_size(x, size, strides, padding))
    total = taps[0][0] * kernel[0, 0, 0]
    for i in range(size[0]):
        for j in range(size[1]):
            if i or j:
                total = total + taps[i][j] * kernel[i, j, 0]
    return total


def input_gradient(
    dy: jax.Array, kernel: jax.Array, strides: Pair, padding: Padding, image_size: Pair
) -> jax.Array:
    """Return the gradient of the input of `conv`, `[N, H, W, C]`. `image_size` is (H, W)."""

    def tap(dy: jax.Array, i: int, j: int) -> jax.Array:
        return dy * kernel[i, j, 0]

    return scatter_taps(dy, tap, (kernel.shape[0], kernel.shape[1]), strides, padding, image_size)


def kernel_gradient(
    x: jax.Array, dy: jax.Array, kernel_size: Pair, strides: Pair, padding: Padding
) -> jax.Array:
    """Return the gradient of the kernel, `[h, w, 1, C]`. `dy` is the gradient of the output.

    First, groups of up to eight image rows are added in explicit sums, which XLA vectorizes over
    channels. XLA would not vectorize a fused reduction. Then a matrix product with ones adds up the
    results.
    """
    n, height, width, channels = dy.shape
    group = next(g for g in (8, 7, 6, 5, 4, 3, 2, 1) if height % g == 0)
    taps = gather_taps(x, kernel_size, strides, padding, (height, width))

    def split_rows(x: jax.Array) -> list[jax.Array]:
        x = x.reshape(n, group, height // group, width, channels)
        return [x[:, i] for i in range(group)]

    dy_parts = split_rows(dy)

    def add_rows(tap: jax.Array) -> jax.Array:
        total: jax.Array | None = None
        for a, b in zip(split_rows(tap), dy_parts, strict=True):
            total = a * b if total is None else total + a * b
        assert total is not None
        return total.reshape(-1, channels)

    ones = jnp.ones((1, n * (height // group) * width), x.dtype)
    rows = [ones @ add_rows(tap) for row in taps for tap in row]
    return jnp.concatenate(rows).reshape(*kernel_size, 1, channels)


def onednn_conv(x: jax.Array, kernel: jax.Array, strides: Pair, padding: Padding) -> jax.Array:
    """Compute `conv` with oneDNN in float32, which is 5 times as fast as oneDNN in bfloat16."""
    wide = jnp.promote_types(x.dtype, jnp.float32)
    return direct.conv(x.astype(wide), kernel.astype(wide), strides, padding).astype(x.dtype)


def onednn_input_gradient(
    dy: jax.Array, kernel: jax.Array, strides: Pair, padding: Padding, image_size: Pair
) -> jax.Array:
    """Compute `input_gradient`. If the stride is 1, oneDNN computes it in float32."""
    if strides != (1, 1):
        return input_gradient(dy, kernel, strides, padding, image_size)
    wide = jnp.promote_types(dy.dtype, jnp.float32)
    dx = direct.input_gradient(dy.astype(wide), kernel.astype(wide), strides, padding, image_size)
    return dx.astype(dy.dtype)


def blocked_kernel_gradient(
    x: jax.Array, dy: jax.Array, kernel_size: Pair, strides: Pair, padding: Padding
) -> jax.Array:
    """Compute `kernel_gradient` in blocks of images; see `pixel_sums`."""
    count = kernel_size[0] * kernel_size[1]

    def prepare(x: jax.Array, dy: jax.Array) -> list[jax.Array]:
        taps = gather_taps(x, kernel_size, strides, padding, (dy.shape[1], dy.shape[2]))
        return [*(tap for row in taps for tap in row), dy]

    def term(tap: int) -> Term:
        return lambda rows: rows[tap].astype(jnp.float32) * rows[-1].astype(jnp.float32)

    sums = pixel_sums([term(tap) for tap in range(count)], (x, dy), prepare)
    return jnp.stack(sums).reshape(*kernel_size, 1, -1).astype(x.dtype)
