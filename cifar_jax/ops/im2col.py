"""Convolution as one matrix product over image patches, for any kernel size and stride.

A tap is one element (i, j) of the kernel, together with the input pixels that it multiplies.
Reference: `jax.lax.conv_general_dilated`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

Padding = tuple[tuple[int, int], tuple[int, int]]
"""Padding of an image in pixels: ((top, bottom), (left, right))."""
Pair = tuple[int, int]
"""Two integers: the first for rows (height), the second for columns (width)."""

FEW_CHANNELS = 8
"""With at least this number of channels, im2col copies whole pixels. With fewer channels, im2col
copies rows of one channel, because short copies are slow."""


def conv(x: jax.Array, kernel: jax.Array, strides: Pair, padding: Padding) -> jax.Array:
    """Convolve images `[N, H, W, C]` with a kernel `[h, w, C, K]`."""
    h, w, c, k = kernel.shape
    output = output_size(x, (h, w), strides, padding)
    if max(c, k) < FEW_CHANNELS:
        y = _plane_kernel(kernel).T @ _planes(x, (h, w), strides, padding, output)
        return y.reshape(k, x.shape[0], *output).transpose(1, 2, 3, 0)
    y = _matrix(_patches(x, (h, w), strides, padding, output)) @ kernel.reshape(-1, k)
    return y.reshape(x.shape[0], *output, k)


def input_gradient(
    dy: jax.Array, kernel: jax.Array, strides: Pair, padding: Padding, image_size: Pair
) -> jax.Array:
    """Return the gradient of the input of `conv`, `[N, H, W, C]`. `image_size` is (H, W)."""
    h, w, c, k = kernel.shape
    products = (_matrix(dy) @ kernel.reshape(-1, k).T).reshape(*dy.shape[:3], -1)
    if (h, w) == strides == (1, 1) and padding == ((0, 0), (0, 0)):
        return products

    def tap(products: jax.Array, i: int, j: int) -> jax.Array:
        return products[..., (i * w + j) * c :][..., :c]

    return scatter_taps(products, tap, (h, w), strides, padding, image_size)


def kernel_gradient(
    x: jax.Array, dy: jax.Array, kernel_size: Pair, strides: Pair, padding: Padding
) -> jax.Array:
    """Return the gradient of the kernel, `[h, w, C, K]`. `dy` is the gradient of the output."""
    (h, w), c, k = kernel_size, x.shape[3], dy.shape[3]
    output = dy.shape[1], dy.shape[2]
    if c < FEW_CHANNELS and kernel_size != (1, 1):
        gradient = _planes(x, kernel_size, strides, padding, output) @ _matrix(dy)
        return gradient.reshape(w, h, c, k).swapaxes(0, 1)
    gradient = _matrix(_patches(x, kernel_size, strides, padding, output)).T @ _matrix(dy)
    return gradient.reshape(h, w, c, k)


def output_size(x: jax.Array, kernel_size: Pair, strides: Pair, padding: Padding) -> Pair:
    """Return the height and width of the convolution's output."""
    height, width = (
        (x.shape[1 + axis] + sum(padding[axis]) - kernel_size[axis]) // strides[axis] + 1
        for axis in range(2)
    )
    return height, width


def gather_taps(
    x: jax.Array, kernel_size: Pair, strides: Pair, padding: Padding, output: Pair
) -> list[list[jax.Array]]:
    """Return the input pixels that each kernel element multiplies.

    The result `taps[i][j]` for kernel element (i, j) is `[N, H', W', C]`.
    """
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    down, across = strides

    def tap(i: int, j: int) -> jax.Array:
        return x[:, i : i + down * output[0] : down, j : j + across * output[1] : across]

    return [[tap(i, j) for j in range(kernel_size[1])] for i in range(kernel_size[0])]


def scatter_taps(
    dy: jax.Array,
    tap: Callable[[jax.Array, int, int], jax.Array],
    kernel_size: Pair,
    strides: Pair,
    padding: Padding,
    image_size: Pair,
) -> jax.Array:
    """Sum the contributions of all kernel elements to each input pixel.

    This is the transpose of `gather_taps`. The input pixels are divided into phases. All pixels of
    a phase have the same row and column modulo the strides, so the same kernel elements contribute
    to them. Each phase is computed as one sum of slices of `dy`. It would be several times slower
    to add one full image for each kernel element.

    Args:
      dy: values of each output pixel, such as the gradient, `[N, H', W', ...]`.
      tap: a function. `tap(part, i, j)` returns the contribution of kernel element (i, j),
        `[N, rows, columns, C]`, from a slice `part` of `dy`.
      kernel_size: (h, w).
      strides: strides of the convolution.
      padding: padding of the convolution.
      image_size: (H, W), the size of the input.

    Returns:
      The gradient of the input, `[N, H, W, C]`.
    """
    extents = [-(-image_size[axis] // strides[axis]) for axis in range(2)]

    def taps(phase: int, axis: int) -> list[tuple[int, int]]:
        """Return the kernel elements along an axis that contribute to the pixels of a phase.

        Each kernel element is a pair (index, offset). Input pixel p of the phase gets the
        contribution of this kernel element from output pixel p + offset.
        """
        steps = [
            divmod(phase + padding[axis][0] - t, strides[axis]) for t in range(kernel_size[axis])
        ]
        return [(t, offset) for t, (offset, remainder) in enumerate(steps) if not remainder]

    offsets = [
        [o for phase in range(strides[axis]) for _, o in taps(phase, axis)] for axis in (0, 1)
    ]
    before = [max(0, -min(offsets[axis], default=0)) for axis in (0, 1)]
    after = [
        max(0, extents[axis] + max(offsets[axis], default=0) - dy.shape[1 + axis])
        for axis in (0, 1)
    ]
    dy = jnp.pad(dy, ((0, 0), (before[0], after[0]), (before[1], after[1]), (0, 0)))

    def phase_sum(row: int, column: int) -> jax.Array:
        total = None
        for i, down in taps(row, 0):
            for j, across in taps(column, 1):
                top, left = before[0] + down, before[1] + across
                part = dy[:, top : top + extents[0], left : left + extents[1]]
                total = tap(part, i, j) if total is None else total + tap(part, i, j)
        if total is None:
            channels = jax.eval_shape(lambda dy: tap(dy, 0, 0), dy).shape[-1]
            return jnp.zeros((dy.shape[0], *extents, channels), dy.dtype)
        return total

    if strides == (1, 1):
        return phase_sum(0, 0)
    rows = [
        jnp.stack([phase_sum(row, column) for column in range(strides[1])], 3)
        for row in range(strides[0])
    ]
    phases = jnp.stack(rows, 2)
    n, c = phases.shape[0], phases.shape[-1]
    image = phases.reshape(n, extents[0] * strides[0], extents[1] * strides[1], c)
    return image[:, : image_size[0], : image_size[1]]


def _patches(
    x: jax.Array, kernel_size: Pair, strides: Pair, padding: Padding, output: Pair
) -> jax.Array:
    """Return the input patch of each output pixel: `[N, H, W, C]` to `[N, H', W', h·w·C]`."""
    if kernel_size == (1, 1) and strides == (1, 1) and padding == ((0, 0), (0, 0)):
        return x
    taps = gather_taps(x, kernel_size, strides, padding, output)
    return jnp.concatenate([tap for row in taps for tap in row], axis=-1)


def _planes(
    x: jax.Array, kernel_size: Pair, strides: Pair, padding: Padding, output: Pair
) -> jax.Array:
    """Return the input patches channel by channel: `[N, H, W, C]` to `[w·h·C, N·H'·W']`.

    The code first selects rows, and then selects columns from the result. This makes fewer and
    longer copies.
    """
    x = jnp.pad(x.transpose(3, 0, 1, 2), ((0, 0), (0, 0), *padding))
    down, across = strides
    x = jnp.stack([x[:, :, i : i + down * output[0] : down] for i in range(kernel_size[0])])
    columns = [x[..., j : j + across * output[1] : across] for j in range(kernel_size[1])]
    return jnp.stack(columns).reshape(kernel_size[0] * kernel_size[1] * x.shape[1], -1)


def _plane_kernel(kernel: jax.Array) -> jax.Array:
    """Reshape a kernel from `[h, w, C, K]` to `[w·h·C, K]`, with rows in the order of `_planes`."""
    return kernel.swapaxes(0, 1).reshape(-1, kernel.shape[3])


def _matrix(x: jax.Array) -> jax.Array:
    """Reshape `[N, H, W, C]` to `[N·H·W, C]`, so that matrix products contract over one axis.

    XLA would transpose the operands of a product that contracts over several axes.
    """
    return x.reshape(-1, x.shape[3])
