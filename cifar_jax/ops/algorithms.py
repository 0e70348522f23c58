"""Choose how a CPU computes each kind of convolution and the two gradients of a convolution.

Each choice was the fastest in measurements with the networks of this package; see
docs/performance.md. The choices for the platform `cpu` were measured on AVX2 and AVX-512
processors. The choices for `cpu-onednn` were measured on a Zen 4 with jax 0.12.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from cifar_jax.ops import depthwise, direct, im2col, winograd
from cifar_jax.ops.im2col import Padding, Pair


class Algorithms(NamedTuple):
    """Functions that compute a convolution and its gradients. `im2col` documents the arguments."""

    conv: Callable[..., jax.Array]
    input_gradient: Callable[..., jax.Array]
    kernel_gradient: Callable[..., jax.Array]


_DEPTHWISE = Algorithms(depthwise.conv, depthwise.input_gradient, depthwise.kernel_gradient)
_DEPTHWISE_ONEDNN = Algorithms(
    depthwise.onednn_conv, depthwise.onednn_input_gradient, depthwise.blocked_kernel_gradient
)
_PATCHES = Algorithms(im2col.conv, im2col.input_gradient, im2col.kernel_gradient)
_DIRECT_PATCHES = Algorithms(direct.conv, im2col.input_gradient, im2col.kernel_gradient)
_WINOGRAD = Algorithms(winograd.conv, winograd.input_gradient, winograd.kernel_gradient)
_DIRECT_WINOGRAD = Algorithms(direct.conv, direct.input_gradient, winograd.kernel_gradient)

_TABLE: dict[str, dict[tuple[str, bool], Algorithms]] = {
    # A key such as ("cpu", True) holds the platform, and whether the type is bfloat16.
    "depthwise": {
        ("cpu", False): _DEPTHWISE,
        ("cpu", True): _DEPTHWISE,
        ("cpu-onednn", False): _DEPTHWISE_ONEDNN,
        ("cpu-onednn", True): _DEPTHWISE_ONEDNN,
    },
    "small": {
        ("cpu", False): _PATCHES,
        ("cpu", True): _PATCHES,
        ("cpu-onednn", False): _PATCHES,
        ("cpu-onednn", True): _PATCHES,
    },
    "3x3": {
        ("cpu", False): _WINOGRAD,
        ("cpu", True): _DIRECT_PATCHES,
        ("cpu-onednn", False): _WINOGRAD,
        ("cpu-onednn", True): _DIRECT_WINOGRAD,
    },
    # XLA exchanges kernel and image if the image has fewer pixels than the kernel. oneDNN cannot
    # compute the resulting convolution, and XLA's loop for it takes 20 times as long as patches.
    "3x3, few pixels": {
        ("cpu", False): _WINOGRAD,
        ("cpu", True): _DIRECT_PATCHES,
        ("cpu-onednn", False): _WINOGRAD,
        ("cpu-onednn", True): _PATCHES,
    },
    "other": {
        ("cpu", False): _DIRECT_PATCHES,
        ("cpu", True): _DIRECT_PATCHES,
        ("cpu-onednn", False): _DIRECT_PATCHES,
        ("cpu-onednn", True): _DIRECT_PATCHES,
    },
}


def select(
    x: jax.Array, kernel: jax.Array, strides: Pair, padding: Padding, groups: int, platform: str
) -> Algorithms:
    """Return the fastest algorithms for a dense or depthwise convolution.

    Args:
      x: input, `[N, H, W, C]`. Only its shape and type are used.
      kernel: `[h, w, C / groups, K]`. Only its shape is used.
      strides: strides of the convolution.
      padding: padding of the convolution.
      groups: 1 or C.
      platform: `cpu` or `cpu-onednn`; see `force_platform`.
    """
    row = _TABLE[_kind(x, kernel, strides, padding, groups)]
    return row[platform, x.dtype in (jnp.bfloat16, jnp.float16)]


def _kind(x: jax.Array, kernel: jax.Array, strides: Pair, padding: Padding, groups: int) -> str:
    height, width, inputs, outputs = kernel.shape
    tiles = x.shape[0] * -(-x.shape[1] // 4) * -(-x.shape[2] // 4)
    if groups == x.shape[3] == outputs:
        return "depthwise"
    # Winograd is fast only with many channels, and with many 4×4 tiles per transformed kernel.
    if (
        (height, width) == (3, 3)
        and strides == (1, 1)
        and max(map(max, padding)) <= 2
        and min(inputs, outputs) >= 16
        and tiles >= 32
    ):
        return "3x3" if x.shape[1] * x.shape[2] >= 9 else "3x3, few pixels"
    few_pixels = x.shape[0] * x.shape[1] * x.shape[2] <= 256
    few_channels = max(inputs, outputs) < im2col.FEW_CHANNELS
    return "small" if (height, width) == (1, 1) or few_pixels or few_channels else "other"
