"""3×3 convolution of stride 1 by Winograd's F(4×4, 3×3): 4 times fewer multiplications.

Each 4×4 tile of the output comes from a 6×6 tile of the input: both are transformed so that the
convolution becomes 36 matrix products over the channels (Lavin and Gray, arXiv:1509.09308, in the
notation Y = Aᵀ[(G g Gᵀ) ⊙ (Bᵀ d B)]A). In float32 the relative error is about 1e-5, where a direct
convolution has 1e-6. Plain reference: `jax.lax.conv_general_dilated`.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Pads = tuple[tuple[int, int], tuple[int, int]]

# Interpolation at 0, ±1, ±2 and infinity. Bᵀ is in `_input_rows`, B in `_overlapping_rows`, Aᵀ in
# `_output_rows` and `_output_pixels`, A in `_gradient_rows`.
_G = np.array([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]]) / 24
_G2 = np.einsum("ia,jb->jiab", _G, _G).reshape(36, 9)


def conv(x: jax.Array, kernel: jax.Array, padding: Pads) -> jax.Array:
    """Convolution of [N, H, W, C] with [3, 3, C, K], stride 1."""
    height, width = _output_size(x, padding)
    tiles = _transform_input(x, padding)
    products = _matrices(tiles) @ _transform_kernel(kernel)
    return _transform_output(products, tiles.shape[2:5])[:, :height, :width]


def input_gradient(
    dy: jax.Array, kernel: jax.Array, padding: Pads, image: tuple[int, int]
) -> jax.Array:
    """Gradient [N, H, W, C] of `conv`'s input, H and W being `image`'s.

    The transpose of `conv`, step by step: it begins as `kernel_gradient` does, so that both share
    one transform of `dy`. As a convolution with the turned kernel it would need another.
    """
    (top, _), (left, _) = padding
    transformed = _transform_gradient(dy) @ _transform_kernel(kernel.swapaxes(2, 3))
    n, height, width, _ = dy.shape
    dx = _overlap_add(transformed, (n, -(-height // 4), -(-width // 4)))
    return dx[:, top : top + image[0], left : left + image[1]]


def kernel_gradient(x: jax.Array, dy: jax.Array, padding: Pads) -> jax.Array:
    """Gradient [3, 3, C, K] of `conv`'s kernel, given that of its output [N, H', W', K]."""
    tiles = _matrices(_transform_input(x, padding))
    transformed = _transform_gradient(dy)
    if tiles.shape[2] <= transformed.shape[2]:
        total = jnp.einsum("atc,atk->ack", tiles, transformed)
    else:  # the fewer rows, the faster
        total = jnp.einsum("atk,atc->akc", transformed, tiles).swapaxes(1, 2)
    gradient = jnp.asarray(_G2.T, x.dtype) @ total.reshape(36, -1)
    return gradient.reshape(3, 3, *total.shape[1:])


def _transform_kernel(kernel: jax.Array) -> jax.Array:
    """[3, 3, C, K] -> [36, C, K]."""
    transformed = jnp.asarray(_G2, kernel.dtype) @ kernel.reshape(9, -1)
    return transformed.reshape(36, *kernel.shape[2:])


def _matrices(tiles: jax.Array) -> jax.Array:
    """[6, 6, N, tiles down, tiles across, C] -> [36, tiles, C].

    XLA would transpose the operands of a product that contracts over several axes.
    """
    return tiles.reshape(36, -1, tiles.shape[-1])


def _transform_input(x: jax.Array, padding: Pads) -> jax.Array:
    """Bᵀ d B of overlapping 6×6 tiles: [N, H, W, C] -> [6, 6, N, tiles down, tiles across, C]."""
    height, width = _output_size(x, padding)
    down, across = -(-height // 4), -(-width // 4)
    n, rows, columns, c = x.shape
    (top, _), (left, _) = padding
    zero = jnp.zeros((), x.dtype)
    bottom, right = 4 * (down + 1) - rows - top, 4 * (across + 1) - columns - left
    x = lax.pad(x, zero, ((0, 0, 0), (top, bottom, 0), (left, right, 0), (0, 0, 0)))

    # With columns and channels as one axis, XLA decides for each number whether it is padding, and
    # computes what comes before, such as GELU and pooling, without vectors: twice the time of all.
    x = x.reshape(n, down + 1, 4, 4 * (across + 1), c)
    parts = [x[:, :-1, i] for i in range(4)] + [x[:, 1:, i] for i in range(2)]
    x = _input_rows(parts).reshape(6, n, down, across + 1, 4, c)
    parts = [x[..., :-1, i, :] for i in range(4)] + [x[..., 1:, i, :] for i in range(2)]
    return _input_rows(parts)


def _overlap_add(tiles: jax.Array, counts: tuple[int, int, int]) -> jax.Array:
    """B d Bᵀ, and 6×6 tiles added up where they overlap: the transpose of `_transform_input`.

    Args:
      tiles: [36, tiles, C].
      counts: (N, down, across) of them.

    Returns:
      [N, 4·down + 4, 4·across + 4, C], padding included.
    """
    n, down, across = counts
    zero, around = jnp.zeros((), tiles.dtype), (1, 1, 0)
    tiles = tiles.reshape(6, 6, n * down, across, -1)
    tiles = lax.pad(tiles, zero, ((0, 0, 0),) * 3 + (around, (0, 0, 0)))
    columns = _overlapping_rows(tiles[:, :, :, 1:], tiles[:, :, :, :-1])
    tiles = columns.swapaxes(0, 1).reshape(6, 4, n, down, across + 1, -1)
    tiles = lax.pad(tiles, zero, ((0, 0, 0),) * 3 + (around, (0, 0, 0), (0, 0, 0)))
    pixels = _overlapping_rows(tiles[:, :, :, 1:], tiles[:, :, :, :-1])
    pixels = pixels.transpose(2, 3, 0, 4, 1, 5)
    return pixels.reshape(n, 4 * down + 4, 4 * across + 4, -1)


def _transform_output(products: jax.Array, tiles: tuple[int, ...]) -> jax.Array:
    """Aᵀ m A: [36, tiles, K] -> [N, 4·down, 4·across, K], of (N, down, across) tiles."""
    n, down, across = tiles
    columns = _output_rows(list(products.reshape(6, 6, *products.shape[1:])))
    pixels = _output_pixels([columns[:, i] for i in range(6)])
    pixels = pixels.reshape(4, 4, n, down, across, -1).transpose(2, 3, 0, 4, 1, 5)
    return pixels.reshape(n, 4 * down, 4 * across, -1)


def _transform_gradient(dy: jax.Array) -> jax.Array:
    """A dy Aᵀ, the transpose of `_transform_output`: [N, H, W, K] -> [36, tiles, K]."""
    n, height, width, k = dy.shape
    down, across = -(-height // 4), -(-width // 4)
    dy = jnp.pad(dy, ((0, 0), (0, 4 * down - height), (0, 4 * across - width), (0, 0)))
    dy = dy.reshape(n * down, 4, -1)
    rows = _gradient_rows([dy[:, i] for i in range(4)]).reshape(6, n * down * across, 4, k)
    return _gradient_rows([rows[:, :, i] for i in range(4)]).reshape(36, -1, k)


def _input_rows(d: Sequence[jax.Array]) -> jax.Array:
    """Bᵀ d along one axis: 6 parts to 6, stacked. Points ±1 and ±2 share even and odd terms."""
    even1, odd1 = d[4] - 4 * d[2], d[3] - 4 * d[1]
    even2, odd2 = d[4] - d[2], 2 * (d[3] - d[1])
    first, last = 4 * d[0] - 5 * d[2] + d[4], 4 * d[1] - 5 * d[3] + d[5]
    return jnp.stack([first, even1 + odd1, even1 - odd1, even2 + odd2, even2 - odd2, last])


def _overlapping_rows(o: jax.Array, before: jax.Array) -> jax.Array:
    """B o along one axis, the transpose of `_input_rows`, on 4 pixels: 6 parts to 4, stacked.

    The tile `before` reaches 2 of its 6 pixels into these.
    """
    sum1, difference1 = o[1] + o[2], o[1] - o[2]
    sum2, difference2 = o[3] + o[4], 2 * (o[3] - o[4])
    return jnp.stack(
        [
            4 * o[0] + (before[0] + before[1] + before[2] + before[3] + before[4]),
            4 * (o[5] - difference1) - difference2 + before[5],
            -5 * o[0] - 4 * sum1 - sum2,
            difference1 + difference2 - 5 * o[5],
        ]
    )


def _output_rows(m: Sequence[jax.Array]) -> jax.Array:
    """Aᵀ m along one axis: 6 parts to 4, stacked."""
    sum1, difference1 = m[1] + m[2], m[1] - m[2]
    sum2, difference2 = m[3] + m[4], m[3] - m[4]
    return jnp.stack(
        [
            m[0] + sum1 + sum2,
            difference1 + 2 * difference2,
            sum1 + 4 * sum2,
            difference1 + 8 * difference2 + m[5],
        ]
    )


def _output_pixels(m: Sequence[jax.Array]) -> jax.Array:
    """The same as a sum of multiples, which takes more operations than `_output_rows`.

    XLA puts this last step into what reads the output. A stack would be a choice there for each
    pixel, which takes twice as long to compile.
    """
    powers = np.arange(4).reshape(4, *(1,) * m[0].ndim)

    def times(part: jax.Array, base: int) -> jax.Array:
        return jnp.asarray(float(base) ** powers, part.dtype) * part

    last = jnp.asarray(powers == 3, m[5].dtype) * m[5]
    return (
        times(m[0], 0) + times(m[1], 1) + times(m[2], -1) + times(m[3], 2) + times(m[4], -2) + last
    )


def _gradient_rows(y: Sequence[jax.Array]) -> jax.Array:
    """A y along one axis, the transpose of `_output_rows`: 4 parts to 6, stacked."""
    even1, odd1 = y[0] + y[2], y[1] + y[3]
    even2, odd2 = y[0] + 4 * y[2], 2 * y[1] + 8 * y[3]
    return jnp.stack([y[0], even1 + odd1, even1 - odd1, even2 + odd2, even2 - odd2, y[3]])


def _output_size(x: jax.Array, padding: Pads) -> tuple[int, int]:
    return x.shape[1] + sum(padding[0]) - 2, x.shape[2] + sum(padding[1]) - 2
