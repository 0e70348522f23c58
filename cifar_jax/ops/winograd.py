"""3×3 convolution of stride 1 by Winograd's F(4×4, 3×3), with 4 times fewer multiplications.

Each 4×4 tile of the output depends on a 6×6 tile of the input. With linear transforms of kernels,
input tiles and output tiles, the convolution becomes 36 matrix products over the channels:
Y = Aᵀ[(G g Gᵀ) ⊙ (Bᵀ d B)]A for a kernel g and an input tile d (Lavin and Gray, arXiv:1509.09308).
The relative error in float32 is about 1e-5, compared with 1e-6 for a direct convolution.
Reference: `jax.lax.conv_general_dilated`.
"""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from cifar_jax.ops.im2col import Padding, Pair

# The interpolation points are 0, ±1, ±2 and infinity. `_G` is the matrix G. Functions apply the
# other matrices: `_input_rows` applies Bᵀ, `_overlapping_rows` applies B, `_output_rows` and
# `_output_pixels` apply Aᵀ, and `_gradient_rows` applies A.
_G = np.array([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]]) / 24
_G2 = np.einsum("ia,jb->jiab", _G, _G).reshape(36, 9)


def conv(x: jax.Array, kernel: jax.Array, strides: Pair, padding: Padding) -> jax.Array:
    """Convolve images `[N, H, W, C]` with a kernel `[3, 3, C, K]`. `strides` must be (1, 1)."""
    del strides
    height, width = _output_size(x, padding)
    tiles = _transform_input(x, padding)
    products = _matrices(tiles) @ _transform_kernel(kernel)
    return _transform_output(products, tiles.shape[2:5])[:, :height, :width]


def input_gradient(
    dy: jax.Array, kernel: jax.Array, strides: Pair, padding: Padding, image_size: Pair
) -> jax.Array:
    """Return the gradient of the input of `conv`, `[N, H, W, C]`. `image_size` is (H, W).

    The function applies the transpose of each linear step of `conv`, in reverse order. The function
    `kernel_gradient` begins with the same transform of `dy`, so XLA computes this transform only
    once.
    """
    del strides
    (top, _), (left, _) = padding
    transformed = _transform_gradient(dy) @ _transform_kernel(kernel.swapaxes(2, 3))
    n, height, width, _ = dy.shape
    dx = _overlap_add(transformed, (n, -(-height // 4), -(-width // 4)))
    return dx[:, top : top + image_size[0], left : left + image_size[1]]


def kernel_gradient(
    x: jax.Array, dy: jax.Array, kernel_size: Pair, strides: Pair, padding: Padding
) -> jax.Array:
    """Return the gradient of the kernel, `[3, 3, C, K]`. `dy` is the gradient of the output."""
    del kernel_size, strides
    tiles = _matrices(_transform_input(x, padding))
    transformed = _transform_gradient(dy)
    # Let the product have as few rows as possible, because this is faster.
    wide = jnp.promote_types(x.dtype, jnp.float32)
    product = partial(jnp.einsum, preferred_element_type=wide)
    if tiles.shape[2] <= transformed.shape[2]:
        total = product("atc,atk->ack", tiles, transformed)
    else:
        total = product("atk,atc->akc", transformed, tiles).swapaxes(1, 2)
    gradient = jnp.asarray(_G2.T, wide) @ total.reshape(36, -1)
    return gradient.reshape(3, 3, *total.shape[1:]).astype(x.dtype)


def _transform_kernel(kernel: jax.Array) -> jax.Array:
    """Return G g Gᵀ for all kernels g: `[3, 3, C, K]` to `[36, C, K]`."""
    transformed = jnp.asarray(_G2, kernel.dtype) @ kernel.reshape(9, -1)
    return transformed.reshape(36, *kernel.shape[2:])


def _matrices(tiles: jax.Array) -> jax.Array:
    """Reshape tiles from `[6, 6, N, rows, columns, C]` to `[36, tiles, C]`.

    Then matrix products contract over one axis. XLA would transpose the operands of a product that
    contracts over several axes.
    """
    return tiles.reshape(36, -1, tiles.shape[-1])


def _transform_input(x: jax.Array, padding: Padding) -> jax.Array:
    """Return Bᵀ d B for all 6×6 tiles d: `[N, H, W, C]` to `[6, 6, N, rows, columns, C]`."""
    height, width = _output_size(x, padding)
    rows, columns = -(-height // 4), -(-width // 4)
    n, image_height, image_width, c = x.shape
    (top, _), (left, _) = padding
    zero = jnp.zeros((), x.dtype)
    bottom, right = 4 * (rows + 1) - image_height - top, 4 * (columns + 1) - image_width - left
    x = lax.pad(x, zero, ((0, 0, 0), (top, bottom, 0), (left, right, 0), (0, 0, 0)))

    # Columns and channels stay separate axes. If they are merged, XLA tests every element for
    # padding and does not vectorize the code. Then the whole convolution takes twice as long.
    x = x.reshape(n, rows + 1, 4, 4 * (columns + 1), c)
    parts = [x[:, :-1, i] for i in range(4)] + [x[:, 1:, i] for i in range(2)]
    x = _input_rows(parts).reshape(6, n, rows, columns + 1, 4, c)
    parts = [x[..., :-1, i, :] for i in range(4)] + [x[..., 1:, i, :] for i in range(2)]
    return _input_rows(parts)


def _overlap_add(tiles: jax.Array, counts: tuple[int, int, int]) -> jax.Array:
    """Add up the overlapping tiles B d Bᵀ. This is the transpose of `_transform_input`.

    Args:
      tiles: the tiles d, `[36, tiles, C]`.
      counts: number of images, tiles per column and tiles per row: (N, rows, columns).

    Returns:
      Images with padding, `[N, 4·rows + 4, 4·columns + 4, C]`.
    """
    n, rows, columns = counts
    zero, around = jnp.zeros((), tiles.dtype), (1, 1, 0)
    tiles = tiles.reshape(6, 6, n * rows, columns, -1)
    tiles = lax.pad(tiles, zero, ((0, 0, 0),) * 3 + (around, (0, 0, 0)))
    strips = _overlapping_rows(tiles[:, :, :, 1:], tiles[:, :, :, :-1])
    tiles = strips.swapaxes(0, 1).reshape(6, 4, n, rows, columns + 1, -1)
    tiles = lax.pad(tiles, zero, ((0, 0, 0),) * 3 + (around, (0, 0, 0), (0, 0, 0)))
    pixels = _overlapping_rows(tiles[:, :, :, 1:], tiles[:, :, :, :-1])
    pixels = pixels.transpose(2, 3, 0, 4, 1, 5)
    return pixels.reshape(n, 4 * rows + 4, 4 * columns + 4, -1)


def _transform_output(products: jax.Array, counts: tuple[int, ...]) -> jax.Array:
    """Join the tiles Aᵀ m A to images: `[36, tiles, K]` to `[N, 4·rows, 4·columns, K]`.

    `counts` is (N, rows, columns): the number of images, tiles per column and tiles per row.
    """
    n, rows, columns = counts
    strips = _output_rows(list(products.reshape(6, 6, *products.shape[1:])))
    pixels = _output_pixels([strips[:, i] for i in range(6)])
    pixels = pixels.reshape(4, 4, n, rows, columns, -1).transpose(2, 3, 0, 4, 1, 5)
    return pixels.reshape(n, 4 * rows, 4 * columns, -1)


def _transform_gradient(dy: jax.Array) -> jax.Array:
    """Return A dy Aᵀ for all 4×4 tiles: `[N, H, W, K]` to `[36, tiles, K]`.

    This is the transpose of `_transform_output`.
    """
    n, height, width, k = dy.shape
    rows, columns = -(-height // 4), -(-width // 4)
    dy = jnp.pad(dy, ((0, 0), (0, 4 * rows - height), (0, 4 * columns - width), (0, 0)))
    dy = dy.reshape(n * rows, 4, -1)
    strips = _gradient_rows([dy[:, i] for i in range(4)]).reshape(6, n * rows * columns, 4, k)
    return _gradient_rows([strips[:, :, i] for i in range(4)]).reshape(36, -1, k)


def _input_rows(d: Sequence[jax.Array]) -> jax.Array:
    """Multiply Bᵀ by 6 rows d, and return the 6 resulting rows in one array.

    The rows for the interpolation points 1 and -1 share terms. So do the rows for 2 and -2.
    """
    even1, odd1 = d[4] - 4 * d[2], d[3] - 4 * d[1]
    even2, odd2 = d[4] - d[2], 2 * (d[3] - d[1])
    first, last = 4 * d[0] - 5 * d[2] + d[4], 4 * d[1] - 5 * d[3] + d[5]
    return jnp.stack([first, even1 + odd1, even1 - odd1, even2 + odd2, even2 - odd2, last])


def _overlapping_rows(o: jax.Array, before: jax.Array) -> jax.Array:
    """Multiply B by tiles, and add up the overlapping rows. This is the transpose of `_input_rows`.

    The product of B and a tile has 6 rows, but the tiles are only 4 rows apart. The last 2 rows of
    each product therefore overlap with the first 2 rows of the next product.

    Args:
      o: the tiles, `[6, ...]`.
      before: the tile that precedes each tile in `o`, `[6, ...]`.

    Returns:
      The first 4 rows of each product, with the overlapping rows added, `[4, ...]`.
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
    """Multiply Aᵀ by 6 rows m, and return the 4 resulting rows in one array."""
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
    """Compute `_output_rows` as a sum of products instead of a stack of rows.

    XLA fuses this last step into the operations that read the output. A fused stack would become a
    select operation per pixel, which takes twice as long to compile. The sum takes more operations,
    but compiles faster.
    """
    powers = np.arange(4).reshape(4, *(1,) * m[0].ndim)

    def times(part: jax.Array, base: int) -> jax.Array:
        return jnp.asarray(float(base) ** powers, part.dtype) * part

    last = jnp.asarray(powers == 3, m[5].dtype) * m[5]
    return (
        times(m[0], 0) + times(m[1], 1) + times(m[2], -1) + times(m[3], 2) + times(m[4], -2) + last
    )


def _gradient_rows(y: Sequence[jax.Array]) -> jax.Array:
    """Multiply A by 4 rows y, and return the 6 resulting rows in one array.

    This is the transpose of `_output_rows`.
    """
    even1, odd1 = y[0] + y[2], y[1] + y[3]
    even2, odd2 = y[0] + 4 * y[2], 2 * y[1] + 8 * y[3]
    return jnp.stack([y[0], even1 + odd1, even1 - odd1, even2 + odd2, even2 - odd2, y[3]])


def _output_size(x: jax.Array, padding: Padding) -> tuple[int, int]:
    return x.shape[1] + sum(padding[0]) - 2, x.shape[2] + sum(padding[1]) - 2
