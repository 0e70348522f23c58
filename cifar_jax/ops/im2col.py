"""Convolution as one matrix product over patches, any kernel size and stride.

Plain reference: `jax.lax.conv_general_dilated`.
"""

import jax
import jax.numpy as jnp
from jax import lax

Pads = tuple[tuple[int, int], tuple[int, int]]
Pair = tuple[int, int]


def conv(x: jax.Array, kernel: jax.Array, strides: Pair, padding: Pads) -> jax.Array:
    """Convolution of [N, H, W, C] with [h, w, C, K]."""
    patches = _patches(x, kernel.shape[:2], strides, padding)
    y = _matrix(patches) @ kernel.reshape(-1, kernel.shape[3])
    return y.reshape(*patches.shape[:3], -1)


def kernel_gradient(
    x: jax.Array, dy: jax.Array, size: Pair, strides: Pair, padding: Pads
) -> jax.Array:
    """Gradient [h, w, C, K] of `conv`'s kernel, given that of its output [N, H', W', K]."""
    patches = _patches(x, size, strides, padding)
    gradient = _matrix(patches).T @ _matrix(dy)
    return gradient.reshape(*size, x.shape[3], dy.shape[3])


def input_gradient(
    dy: jax.Array, kernel: jax.Array, strides: Pair, padding: Pads, size: Pair
) -> jax.Array:
    """Gradient [N, H, W, C] of `conv`'s input, of `size` (H, W)."""
    high, wide, c, k = kernel.shape
    taps = (_matrix(dy) @ kernel.reshape(-1, k).T).reshape(*dy.shape[:3], -1)
    if (high, wide) == strides == (1, 1) and padding == ((0, 0), (0, 0)):
        return taps
    return scatter_taps(
        [[taps[..., (i * wide + j) * c :][..., :c] for j in range(wide)] for i in range(high)],
        strides,
        padding,
        size,
    )


def gather_taps(
    x: jax.Array, size: Pair, strides: Pair, padding: Pads, output: Pair
) -> list[list[jax.Array]]:
    """For each tap of the kernel the input pixels under it: rows of columns of [N, H', W', C]."""
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    down, across = strides

    def tap(i: int, j: int) -> jax.Array:
        return x[:, i : i + down * output[0] : down, j : j + across * output[1] : across]

    return [[tap(i, j) for j in range(size[1])] for i in range(size[0])]


def scatter_taps(
    taps: list[list[jax.Array]], strides: Pair, padding: Pads, size: Pair
) -> jax.Array:
    """The transpose of `gather_taps`: adds every tap's pixels up where they came from.

    One sum for each residue of the pixel's row and column modulo the strides, since strided
    updates of one large array run at a fraction of memory speed.
    """
    n, height, width, c = taps[0][0].shape
    rows, columns = (-(-extent // stride) for extent, stride in zip(size, strides, strict=True))
    zero = jnp.zeros((), taps[0][0].dtype)

    def reach(residue: int, tap: int, axis: int) -> int | None:
        """How far the output pixel under this tap lies ahead of the input pixel, if under any."""
        ahead, rest = divmod(residue + padding[axis][0] - tap, strides[axis])
        return None if rest else ahead

    def phase(p: int, q: int) -> jax.Array:
        total = jnp.zeros((n, rows, columns, c), zero.dtype)
        for i, row in enumerate(taps):
            for j, tap in enumerate(row):
                a, b = reach(p, i, 0), reach(q, j, 1)
                if a is None or b is None:
                    continue
                edges = ((0, 0, 0), (-a, rows - height + a, 0), (-b, columns - width + b, 0))
                total = total + lax.pad(tap, zero, (*edges, (0, 0, 0)))
        return total

    if strides == (1, 1):
        return phase(0, 0)
    phases = jnp.stack(
        [jnp.stack([phase(p, q) for q in range(strides[1])], 3) for p in range(strides[0])], 2
    )
    return phases.reshape(n, rows * strides[0], columns * strides[1], c)[:, : size[0], : size[1]]


def output_size(x: jax.Array, size: Pair, strides: Pair, padding: Pads) -> Pair:
    """Height and width of the convolution's output."""
    height, width = (
        (x.shape[1 + axis] + sum(padding[axis]) - size[axis]) // strides[axis] + 1
        for axis in range(2)
    )
    return height, width


def _patches(x: jax.Array, size: Pair, strides: Pair, padding: Pads) -> jax.Array:
    """[N, H, W, C] -> [N, H', W', h·w·C]."""
    if size == (1, 1) and strides == (1, 1) and padding == ((0, 0), (0, 0)):
        return x
    output = output_size(x, size, strides, padding)
    taps = gather_taps(x, size, strides, padding, output)
    return jnp.concatenate([tap for row in taps for tap in row], axis=-1)


def _matrix(x: jax.Array) -> jax.Array:
    """[N, H, W, C] -> [N·H·W, C].

    XLA would transpose the operands of a product that contracts over several axes.
    """
    return x.reshape(-1, x.shape[3])
