"""Test that convolution on one or several CPU devices equals XLA's convolution."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from cifar_jax import devices, ops
from cifar_jax.ops import algorithms

SAME = ((1, 1), (1, 1))
# Batch size, height, width, input channels, output channels, kernel size, stride, padding, groups.
CASES: dict[str, tuple[Any, ...]] = {
    "winograd": (8, 16, 16, 16, 24, 3, 1, SAME, 1),
    "winograd, uneven tiles and padding": (7, 13, 18, 17, 16, 3, 1, ((0, 1), (2, 1)), 1),
    "winograd, no padding": (8, 9, 10, 16, 16, 3, 1, "VALID", 1),
    "three channels": (4, 8, 8, 3, 8, 3, 1, "SAME", 1),
    "one image": (1, 4, 4, 32, 32, 3, 1, SAME, 1),
    "stride 2": (3, 8, 8, 4, 6, 3, 2, SAME, 1),
    "stride 2, odd image": (3, 9, 11, 4, 5, 3, 2, SAME, 1),
    "stride 3": (2, 8, 8, 4, 6, 3, 3, ((1, 0), (2, 1)), 1),
    "5x5": (5, 14, 14, 6, 16, 5, 1, "VALID", 1),
    "pointwise": (5, 8, 7, 6, 7, 1, 1, "VALID", 1),
    "pointwise, stride 2": (5, 8, 8, 6, 7, 1, 2, "VALID", 1),
    "depthwise": (3, 8, 8, 5, 5, 3, 1, SAME, 5),
    "depthwise, one image": (1, 7, 7, 8, 8, 3, 1, SAME, 8),
    "depthwise, stride 2": (3, 8, 8, 6, 6, 3, 2, SAME, 6),
    "depthwise, stride 2, odd image": (3, 9, 8, 5, 5, 3, 2, SAME, 5),
    "one channel to several": (3, 8, 8, 1, 6, 3, 1, SAME, 1),
    "one channel to several, stride 2": (2, 9, 8, 1, 24, 5, 2, SAME, 1),
    "depthwise, one channel": (2, 6, 6, 1, 1, 3, 1, SAME, 1),
    "grouped, left to XLA": (2, 6, 6, 4, 8, 3, 1, SAME, 2),
}
# Test cases for each kind of convolution in `ops/algorithms.py`.
KINDS = {
    "winograd, uneven tiles and padding": "3x3",
    "pointwise": "small",
    "5x5": "other",
    "depthwise": "depthwise",
    "depthwise, stride 2, odd image": "depthwise",
}
# These cases are slow. The other cases test most of the same code.
SLOW = [
    *("winograd, no padding", "depthwise, one image", "depthwise, one channel"),
    *("one channel to several, stride 2", "pointwise, stride 2"),
]


def arrays(case: tuple[Any, ...], dtype: str) -> tuple[jax.Array, jax.Array]:
    """Return random images and a random kernel."""
    n, height, width, c, k, size, _, _, groups = case
    random = np.random.default_rng(0)
    x = random.standard_normal((n, height, width, c))
    kernel = random.standard_normal((size, size, c // groups, k))
    return jnp.asarray(x, dtype), jnp.asarray(kernel, dtype)


def convolution(conv: Callable[..., jax.Array], case: tuple[Any, ...]) -> Callable[..., jax.Array]:
    *_, stride, padding, groups = case
    return partial(
        conv,
        window_strides=(stride, stride),
        padding=padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


# XLA's optimizations are off, because compilation dominates the time of these tests.
@partial(jax.jit, static_argnums=0, compiler_options={"xla_backend_optimization_level": 0})
def run(conv: Callable[..., jax.Array], x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, ...]:
    """Return the output of a convolution and the gradients of its images and kernel."""
    y, vjp = jax.vjp(conv, x, kernel)
    return y, *vjp(jnp.cos(jnp.arange(y.size)).reshape(y.shape).astype(y.dtype))


def relative_error(actual: Any, expected: Any) -> float:
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in CASES]
)
def test_conv_equals_xla(name: str) -> None:
    case = CASES[name]
    with jax.enable_x64(True):
        x, kernel = arrays(case, "float64")
        expected = run(convolution(lax.conv_general_dilated, case), x, kernel)
        actual = run(convolution(ops.conv_general_dilated, case), x, kernel)
    for a, b in zip(actual, expected, strict=True):
        assert a.shape == b.shape
        assert a.dtype == jnp.float64
        assert relative_error(a, b) < 1e-12


@pytest.mark.parametrize(
    ("platform", "dtype", "tolerance"),
    [
        *(("cpu", "float32", 2e-5), ("cpu", "bfloat16", 0.02)),
        *(("cpu-onednn", "float32", 2e-5), ("cpu-onednn", "bfloat16", 0.02)),
        ("default", "float32", 2e-6),
    ],
)
@pytest.mark.parametrize("name", KINDS)
def test_precision(name: str, platform: str, dtype: str, tolerance: float) -> None:
    case = CASES[name]
    x, kernel = arrays(case, dtype)
    wide = [a.astype("float32") for a in (x, kernel)]
    expected = run(convolution(lax.conv_general_dilated, case), *wide)
    with ops.force_platform(platform):
        actual = run(convolution(ops.conv_general_dilated, case), x, kernel)
    if KINDS[name] == "3x3" and (platform, dtype) == ("cpu-onednn", "bfloat16"):
        tolerance = 0.05  # Winograd's transforms amplify the rounding of the kernel gradient.
    for a, b in zip(actual, expected, strict=True):
        assert a.dtype == dtype
        assert relative_error(a, b) < tolerance


@pytest.mark.parametrize(("name", "kind"), KINDS.items())
def test_kinds_of_convolutions(name: str, kind: str) -> None:
    *_, stride, padding, groups = case = CASES[name]
    pads = ((0, 0), (0, 0)) if padding == "VALID" else padding
    assert algorithms._kind(*arrays(case, "float32"), (stride, stride), pads, groups) == kind


@pytest.mark.parametrize("size", [2, 3])
def test_onednn_computes_every_product_in_bfloat16(size: int) -> None:
    if not devices.has_onednn():
        pytest.skip("the installed jaxlib has no oneDNN")
    case = (250, size, size, 64, 64, 3, 1, ((1, 1), (1, 1)), 1)
    x, kernel = arrays(case, "bfloat16")

    def loss(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return convolution(ops.conv_general_dilated, case)(x, kernel).sum(dtype="float32")

    with ops.force_platform("cpu-onednn"):
        lowered = jax.jit(jax.value_and_grad(loss, (0, 1))).lower(x, kernel)
    program = devices._compile(lowered, devices._ONEDNN_OPTIONS).as_text() or ""
    assert "__onednn" in program
    assert " convolution(" not in program  # XLA's own loop for a convolution is slow.


@pytest.mark.slow
def test_second_derivative() -> None:
    case = CASES["winograd"]
    x, kernel = arrays(case, "float32")

    def curvature(conv: Callable[..., jax.Array]) -> jax.Array:
        gradient = jax.grad(lambda k: jnp.square(convolution(conv, case)(x, k)).sum())
        return jax.jit(jax.grad(lambda k: jnp.square(gradient(k)).sum()))(kernel)

    expected = curvature(lax.conv_general_dilated)
    assert relative_error(curvature(ops.conv_general_dilated), expected) < 1e-4


@pytest.mark.skipif(jax.device_count() < 8, reason="needs 8 devices")
@pytest.mark.parametrize(
    "name",
    [
        *("winograd", "depthwise"),
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("stride 2", "pointwise")),
    ],
)
def test_devices_exchange_only_the_kernel_gradient(name: str) -> None:
    case = (32, *CASES[name][1:])
    x, kernel = arrays(case, "float32")
    expected = run(convolution(lax.conv_general_dilated, case), x, kernel)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    x = jax.device_put(x, NamedSharding(mesh, P("data")))
    kernel = jax.device_put(kernel, NamedSharding(mesh, P()))
    conv = convolution(ops.conv_general_dilated, case)

    def step(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, ...]:
        y, vjp = jax.vjp(conv, x, kernel)
        return y, *vjp(jnp.cos(jnp.arange(y.size)).reshape(y.shape).astype(y.dtype))

    compiled = jax.jit(step).lower(x, kernel).compile()
    hlo = compiled.as_text()
    for collective in ("all-gather", "all-to-all", "collective-permute"):
        assert collective not in hlo
    assert "all-reduce" in hlo
    for a, b in zip(compiled(x, kernel), expected, strict=True):
        assert relative_error(a, b) < 2e-5
