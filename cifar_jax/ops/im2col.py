"""Convolution as one matrix product over patches, any kernel size and stride.

Plain reference: `jax.lax.conv_general_dilated`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

Pads = tuple[tuple[int, int], tuple[int, int]]
Pair = tuple[int, int]

# Copying a few channels at a time is slow: with so few, rows of pixels are copied instead.
FEW_CHANNELS = 8


def conv(x: jax.Array, kernel: jax.Array, strides: Pair, padding: Pads) -> jax.Array:
    """Convolution of [N, H, W, C] with [h, w, C, K]."""
    high, wide, c, k = kernel.shape
    size = high, wide
    output = output_size(x, size, strides, padding)
    if max(c, k) < FEW_CHANNELS:
        y = _plane_kernel(kernel).T @ _planes(x, size, strides, padding, output)
        return y.reshape(k, x.shape[0], *output).transpose(1, 2, 3, 0)
    y = _matrix(_patches(x, size, strides, padding, output)) @ kernel.reshape(-1, k)
    return y.reshape(x.shape[0], *output, k)


def kernel_gradient(
    x: jax.Array, dy: jax.Array, size: Pair, strides: Pair, padding: Pads
) -> jax.Array:
    """Gradient [h, w, C, K] of `conv`'s kernel, given that of its output [N, H', W', K]."""
    (high, wide), c, k = size, x.shape[3], dy.shape[3]
    output = dy.shape[1], dy.shape[2]
    if c < FEW_CHANNELS and size != (1, 1):
        gradient = _planes(x, size, strides, padding, output) @ _matrix(dy)
        return gradient.reshape(wide, high, c, k).swapaxes(0, 1)
    gradient = _matrix(_patches(x, size, strides, padding, output)).T @ _matrix(dy)
    return gradient.reshape(high, wide, c, k)


def input_gradient(
    dy: jax.Array, kernel: jax.Array, strides: Pair, padding: Pads, size: Pair
) -> jax.Array:
    """Gradient [N, H, W, C] of `conv`'s input, of `size` (H, W)."""
    high, wide, c, k = kernel.shape
    taps = (_matrix(dy) @ kernel.reshape(-1, k).T).reshape(*dy.shape[:3], -1)
    if (high, wide) == strides == (1, 1) and padding == ((0, 0), (0, 0)):
        return taps

    def tap(taps: jax.Array, i: int, j: int) -> jax.Array:
        return taps[..., (i * wide + j) * c :][..., :c]

    return scatter_taps(taps, tap, (high, wide), strides, padding, size)


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
    dy: jax.Array,
    tap: Callable[[jax.Array, int, int], jax.Array],
    kernel: Pair,
    strides: Pair,
    padding: Pads,
    size: Pair,
) -> jax.Array:
    """The transpose of `gather_taps`: adds up what every tap sends back to where it came from.

    `tap(dy, i, j)` is what tap (i, j) of the `kernel`, given as (h, w), makes of some pixels of
    `dy`. There is one sum for each residue of an input pixel's row and column modulo the strides,
    over slices of `dy` padded once: updates or paddings tap by tap run at a fraction of the speed.
    """
    extents = [-(-size[axis] // strides[axis]) for axis in range(2)]

    def taps(residue: int, axis: int) -> list[tuple[int, int]]:
        """Taps that see this residue, and how far ahead of the pixel their output pixel lies."""
        steps = [divmod(residue + padding[axis][0] - t, strides[axis]) for t in range(kernel[axis])]
        return [(t, ahead) for t, (ahead, rest) in enumerate(steps) if not rest]

    reach = [[ahead for r in range(strides[axis]) for _, ahead in taps(r, axis)] for axis in (0, 1)]
    before = [max(0, -min(ahead, default=0)) for ahead in reach]
    after = [
        max(0, extents[axis] + max(reach[axis], default=0) - dy.shape[1 + axis]) for axis in (0, 1)
    ]
    dy = jnp.pad(dy, ((0, 0), (before[0], after[0]), (before[1], after[1]), (0, 0)))

    def phase(p: int, q: int) -> jax.Array:
        total = None
        for i, a in taps(p, 0):
            for j, b in taps(q, 1):
                down, across = before[0] + a, before[1] + b
                seen = dy[:, down : down + extents[0], across : across + extents[1]]
                total = tap(seen, i, j) if total is None else total + tap(seen, i, j)
        if total is None:
            channels = jax.eval_shape(lambda dy: tap(dy, 0, 0), dy).shape[-1]
            return jnp.zeros((dy.shape[0], *extents, channels), dy.dtype)
        return total

    if strides == (1, 1):
        return phase(0, 0)
    phases = jnp.stack(
        [jnp.stack([phase(p, q) for q in range(strides[1])], 3) for p in range(strides[0])], 2
    )
    n, c = phases.shape[0], phases.shape[-1]
    whole = phases.reshape(n, extents[0] * strides[0], extents[1] * strides[1], c)
    return whole[:, : size[0], : size[1]]


def output_size(x: jax.Array, size: Pair, strides: Pair, padding: Pads) -> Pair:
    """Height and width of the convolution's output."""
    height, width = (
        (x.shape[1 + axis] + sum(padding[axis]) - size[axis]) // strides[axis] + 1
        for axis in range(2)
    )
    return height, width


def _patches(x: jax.Array, size: Pair, strides: Pair, padding: Pads, output: Pair) -> jax.Array:
    """What the kernel sees from each place, pixel by pixel: [N, H, W, C] -> [N, H', W', h·w·C]."""
    if size == (1, 1) and strides == (1, 1) and padding == ((0, 0), (0, 0)):
        return x
    taps = gather_taps(x, size, strides, padding, output)
    return jnp.concatenate([tap for row in taps for tap in row], axis=-1)


def _planes(x: jax.Array, size: Pair, strides: Pair, padding: Pads, output: Pair) -> jax.Array:
    """What each tap of the kernel sees, plane by plane: [N, H, W, C] -> [w·h·C, N·H'·W'].

    First rows are taken, then columns of them, which makes for fewer and longer copies.
    """
    x = jnp.pad(x.transpose(3, 0, 1, 2), ((0, 0), (0, 0), *padding))
    down, across = strides
    rows = [x[:, :, i : i + down * output[0] : down] for i in range(size[0])]
    x = jnp.stack(rows)
    columns = [x[..., j : j + across * output[1] : across] for j in range(size[1])]
    return jnp.stack(columns).reshape(size[0] * size[1] * x.shape[1], -1)


def _plane_kernel(kernel: jax.Array) -> jax.Array:
    """[h, w, C, K] -> [w·h·C, K], the rows in the order of `_planes`."""
    return kernel.swapaxes(0, 1).reshape(-1, kernel.shape[3])


def _matrix(x: jax.Array) -> jax.Array:
    """[N, H, W, C] -> [N·H·W, C].

    XLA would transpose the operands of a product that contracts over several axes.
    """
    return x.reshape(-1, x.shape[3])
