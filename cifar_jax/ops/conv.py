"""Convolution with the signature of `jax.lax.conv_general_dilated`, for `flax.linen.Conv`."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from cifar_jax.ops import depthwise, im2col, platform, winograd
from cifar_jax.ops.im2col import Pads, Pair

_NHWC = ("NHWC", "HWIO", "NHWC")


def conv_general_dilated(
    lhs: jax.Array,
    rhs: jax.Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    precision: Any = None,
    preferred_element_type: Any = None,
) -> jax.Array:
    """`jax.lax.conv_general_dilated`: same arguments, same result up to rounding, faster on CPU.

    Dense and depthwise 2-D convolutions of NHWC images with HWIO kernels have a CPU path with its
    own gradients; everything else, and every other platform, takes XLA's. The CPU path is
    differentiable in reverse mode only.
    """
    numbers = (
        lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
        if lhs.ndim == rhs.ndim == 4
        else None
    )
    covered = (
        numbers == lax.conv_dimension_numbers(lhs.shape, rhs.shape, _NHWC)
        and all(d == 1 for d in (*(lhs_dilation or ()), *(rhs_dilation or ())))
        and (feature_group_count == 1 or feature_group_count == lhs.shape[3] == rhs.shape[3])
        and batch_group_count == 1
        and preferred_element_type in (None, lhs.dtype)
        and precision is None
        and lhs.dtype == rhs.dtype
        and jnp.issubdtype(lhs.dtype, jnp.floating)
    )
    if covered:
        height, width = window_strides
        if isinstance(padding, str):
            padding = lax.padtype_to_pads(lhs.shape[1:3], rhs.shape[:2], window_strides, padding)
        (top, bottom), (left, right) = padding
        covered = min(top, bottom, left, right) >= 0
        if covered:
            pads = ((int(top), int(bottom)), (int(left), int(right)))
            strides = height, width
            return _conv(lhs, rhs, strides, pads, feature_group_count, platform.named())
    return lax.conv_general_dilated(
        lhs,
        rhs,
        window_strides,
        padding,
        lhs_dilation=lhs_dilation,
        rhs_dilation=rhs_dilation,
        dimension_numbers=dimension_numbers,
        feature_group_count=feature_group_count,
        batch_group_count=batch_group_count,
        precision=precision,
        preferred_element_type=preferred_element_type,
    )


# Under jit, which remembers them, convolutions of one shape are traced only once; inlined, they
# compile as if they were written out.
@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4, 5))
@partial(jax.jit, static_argnums=(2, 3, 4, 5), inline=True)
def _conv(
    x: jax.Array, kernel: jax.Array, strides: Pair, pads: Pads, groups: int, named: str | None
) -> jax.Array:
    plain = partial(_plain, strides=strides, pads=pads, groups=groups)
    if named not in (None, "cpu"):
        return plain(x, kernel)  # without a look at the shapes: the batch's size may be unknown
    if _depthwise(x, kernel, groups):
        fast = partial(depthwise.conv, strides=strides, padding=pads)
    elif _winograd_pays(x, kernel, strides, pads):
        fast = partial(winograd.conv, padding=pads)
    elif kernel.shape[:2] == (1, 1) or _few_pixels(x) or _few_channels(kernel):
        fast = partial(im2col.conv, strides=strides, padding=pads)
    else:
        return plain(x, kernel)
    return platform.choose(named, x, kernel, cpu=fast, default=plain)


def _forward(
    x: jax.Array, kernel: jax.Array, strides: Pair, pads: Pads, groups: int, named: str | None
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _conv(x, kernel, strides, pads, groups, named), (x, kernel)


@partial(jax.jit, static_argnums=(0, 1, 2, 3), inline=True)
def _backward(
    strides: Pair,
    pads: Pads,
    groups: int,
    named: str | None,
    residuals: tuple[jax.Array, jax.Array],
    dy: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    x, kernel = residuals
    size = kernel.shape[0], kernel.shape[1]
    image = x.shape[1], x.shape[2]
    plain = partial(_plain, strides=strides, pads=pads, groups=groups)

    def plain_dx(x: jax.Array, kernel: jax.Array, dy: jax.Array) -> jax.Array:
        return jax.vjp(lambda x: plain(x, kernel), x)[1](dy)[0]

    def plain_dkernel(x: jax.Array, kernel: jax.Array, dy: jax.Array) -> jax.Array:
        return jax.vjp(lambda kernel: plain(x, kernel), kernel)[1](dy)[0]

    def fast_dx(x: jax.Array, kernel: jax.Array, dy: jax.Array) -> jax.Array:
        if _depthwise(x, kernel, groups):
            return depthwise.input_gradient(dy, kernel, strides, pads, image)
        if _winograd_pays(x, kernel, strides, pads):
            return winograd.input_gradient(dy, kernel, pads, image)
        return im2col.input_gradient(dy, kernel, strides, pads, image)

    def fast_dkernel(x: jax.Array, kernel: jax.Array, dy: jax.Array) -> jax.Array:
        if _depthwise(x, kernel, groups):
            return depthwise.kernel_gradient(x, dy, size, strides, pads)
        if _winograd_pays(x, kernel, strides, pads):
            return winograd.kernel_gradient(x, dy, pads)
        return im2col.kernel_gradient(x, dy, size, strides, pads)

    return (
        platform.choose(named, x, kernel, dy, cpu=fast_dx, default=plain_dx),
        platform.choose(named, x, kernel, dy, cpu=fast_dkernel, default=plain_dkernel),
    )


_conv.defvjp(_forward, _backward)


def _plain(x: jax.Array, kernel: jax.Array, *, strides: Pair, pads: Pads, groups: int) -> jax.Array:
    return lax.conv_general_dilated(
        x, kernel, strides, pads, dimension_numbers=_NHWC, feature_group_count=groups
    )


def _depthwise(x: jax.Array, kernel: jax.Array, groups: int) -> bool:
    """Each channel by itself: a single one that becomes several is an ordinary convolution."""
    return groups == x.shape[3] == kernel.shape[3]


def _few_pixels(x: jax.Array) -> bool:
    return x.shape[0] * x.shape[1] * x.shape[2] <= 256


def _few_channels(kernel: jax.Array) -> bool:
    return max(kernel.shape[2:]) < im2col.FEW_CHANNELS


def _winograd_pays(x: jax.Array, kernel: jax.Array, strides: Pair, pads: Pads) -> bool:
    """Whether enough 4×4 tiles share the cost of transforming the kernel, and enough channels."""
    high, wide, c, k = kernel.shape
    tiles = x.shape[0] * -(-(x.shape[1]) // 4) * -(-(x.shape[2]) // 4)
    return (
        (high, wide) == (3, 3)
        and strides == (1, 1)
        and max(map(max, pads)) <= 2
        and min(c, k) >= 16
        and tiles >= 32
        and x.dtype in (jnp.float32, jnp.float64)
    )
