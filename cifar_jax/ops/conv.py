"""Convolution with the signature of `jax.lax.conv_general_dilated`, for `flax.linen.Conv`."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from cifar_jax.ops import algorithms, direct
from cifar_jax.ops.algorithms import Algorithms
from cifar_jax.ops.im2col import Padding, Pair
from cifar_jax.ops.platform import dispatch, forced_platform

_NHWC = ("NHWC", "HWIO", "NHWC")


class _Options(NamedTuple):
    """Static arguments of a convolution."""

    strides: Pair
    padding: Padding
    groups: int
    platform: str | None
    """The result of `forced_platform`."""


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
    """Return `jax.lax.conv_general_dilated` of the same arguments, up to rounding.

    On a CPU, dense and depthwise 2-D convolutions of NHWC images with HWIO kernels have a faster
    implementation. It defines its own gradients and supports only reverse-mode differentiation. In
    all other cases, XLA's convolution is used.
    """
    numbers = (
        lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
        if lhs.ndim == rhs.ndim == 4
        else None
    )
    supported = (
        numbers == lax.conv_dimension_numbers(lhs.shape, rhs.shape, _NHWC)
        and all(d == 1 for d in (*(lhs_dilation or ()), *(rhs_dilation or ())))
        and (feature_group_count == 1 or feature_group_count == lhs.shape[3] == rhs.shape[3])
        and batch_group_count == 1
        and preferred_element_type in (None, lhs.dtype)
        and precision is None
        and lhs.dtype == rhs.dtype
        and jnp.issubdtype(lhs.dtype, jnp.floating)
    )
    if supported:
        height, width = window_strides
        if isinstance(padding, str):
            padding = lax.padtype_to_pads(lhs.shape[1:3], rhs.shape[:2], window_strides, padding)
        (top, bottom), (left, right) = padding
        if min(top, bottom, left, right) >= 0:
            pads = ((int(top), int(bottom)), (int(left), int(right)))
            groups = feature_group_count
            return _conv(lhs, rhs, _Options((height, width), pads, groups, forced_platform()))
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


# The inlined jit lets JAX trace convolutions of equal shapes only once. XLA still optimizes each
# convolution together with the operations around it.
@partial(jax.custom_vjp, nondiff_argnums=(2,))
@partial(jax.jit, static_argnums=(2,), inline=True)
def _conv(x: jax.Array, kernel: jax.Array, options: _Options) -> jax.Array:
    default = partial(direct.conv, strides=options.strides, padding=options.padding)
    if options.platform not in (None, "cpu", "cpu-onednn"):
        # Do not choose an algorithm by shape here, because the batch size may be symbolic.
        return default(x, kernel)
    conv = _algorithms(x, kernel, options).conv
    if conv is direct.conv:
        return default(x, kernel)
    cpu = partial(conv, strides=options.strides, padding=options.padding)
    return dispatch(options.platform, x, kernel, cpu=cpu, default=default)


def _forward(
    x: jax.Array, kernel: jax.Array, options: _Options
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _conv(x, kernel, options), (x, kernel)


@partial(jax.jit, static_argnums=(0,), inline=True)
def _backward(
    options: _Options, residuals: tuple[jax.Array, jax.Array], dy: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = residuals
    image_size = x.shape[1], x.shape[2]
    kernel_size = kernel.shape[0], kernel.shape[1]
    window = {"strides": options.strides, "padding": options.padding}
    conv = partial(direct.conv, **window)

    def default_dx(x: jax.Array, kernel: jax.Array, dy: jax.Array) -> jax.Array:
        return jax.vjp(lambda x: conv(x, kernel), x)[1](dy)[0]

    def default_dkernel(x: jax.Array, kernel: jax.Array, dy: jax.Array) -> jax.Array:
        return jax.vjp(lambda kernel: conv(x, kernel), kernel)[1](dy)[0]

    def cpu_dx(x: jax.Array, kernel: jax.Array, dy: jax.Array) -> jax.Array:
        gradient = _algorithms(x, kernel, options).input_gradient
        return gradient(dy, kernel, image_size=image_size, **window)

    def cpu_dkernel(x: jax.Array, kernel: jax.Array, dy: jax.Array) -> jax.Array:
        gradient = _algorithms(x, kernel, options).kernel_gradient
        return gradient(x, dy, kernel_size=kernel_size, **window)

    return (
        dispatch(options.platform, x, kernel, dy, cpu=cpu_dx, default=default_dx),
        dispatch(options.platform, x, kernel, dy, cpu=cpu_dkernel, default=default_dkernel),
    )


_conv.defvjp(_forward, _backward)


def _algorithms(x: jax.Array, kernel: jax.Array, options: _Options) -> Algorithms:
    strides, padding, groups, platform = options
    return algorithms.select(x, kernel, strides, padding, groups, platform or "cpu")
