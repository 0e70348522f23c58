"""XLA's own convolution. If a program is compiled with oneDNN, this convolution uses oneDNN.

`devices.compile_program` decides whether a program uses oneDNN.
"""

import jax
from jax import lax

from cifar_jax.ops.im2col import Padding, Pair

_NHWC = ("NHWC", "HWIO", "NHWC")


def conv(x: jax.Array, kernel: jax.Array, strides: Pair, padding: Padding) -> jax.Array:
    """Convolve `[N, H, W, C]` with `[h, w, C / groups, K]`."""
    groups = x.shape[3] // kernel.shape[2]
    return lax.conv_general_dilated(
        x, kernel, strides, padding, dimension_numbers=_NHWC, feature_group_count=groups
    )


def input_gradient(
    dy: jax.Array, kernel: jax.Array, strides: Pair, padding: Padding, image_size: Pair
) -> jax.Array:
    """Return the gradient of the input of a dense or depthwise `conv` with stride 1.

    This gradient is the convolution of `dy` with the flipped kernel. Without the optimization
    barrier, XLA would flip the kernel inside the convolution. oneDNN cannot compute a convolution
    that flips the kernel.

    Args:
      dy: `[N, H', W', K]`.
      kernel: `[h, w, C, K]`, or `[h, w, 1, K]` of a depthwise convolution.
      strides: (1, 1).
      padding: padding of `conv`.
      image_size: (H, W) of the input.

    Returns:
      `[N, H, W, C]`.
    """
    del strides
    flipped = kernel[::-1, ::-1]
    if kernel.shape[2] > 1:
        flipped = flipped.swapaxes(2, 3)
    pads = []
    for axis, (before, _) in enumerate(padding):
        first = kernel.shape[axis] - 1 - before
        pads.append((first, image_size[axis] + kernel.shape[axis] - 1 - first - dy.shape[1 + axis]))
    top_bottom, left_right = pads
    return conv(dy, lax.optimization_barrier(flipped), (1, 1), (top_bottom, left_right))
