"""The CPU paths of convolution against XLA's own; under jit, on a mesh, and in export."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from cifar_jax import ops

SAME = ((1, 1), (1, 1))
# batch, height, width, channels in, channels out, kernel, stride, padding, groups
CASES = {
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


def arrays(case, dtype):
    n, height, width, c, k, size, _, _, groups = case
    keys = jax.random.split(jax.random.key(0))
    x = jax.random.normal(keys[0], (n, height, width, c), dtype)
    kernel = jax.random.normal(keys[1], (size, size, c // groups, k), dtype)
    return x, kernel


def convolve(conv, case):
    *_, stride, padding, groups = case
    return functools.partial(
        conv,
        window_strides=(stride, stride),
        padding=padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def value_and_gradients(conv, x, kernel):
    @jax.jit
    def run(x, kernel):
        y, vjp = jax.vjp(conv, x, kernel)
        return y, *vjp(jnp.cos(jnp.arange(y.size)).reshape(y.shape).astype(y.dtype))

    return run(x, kernel)


def relative_error(a, b):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return np.linalg.norm(a - b) / np.linalg.norm(b)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_equals_xla(case):
    with jax.enable_x64(True):
        x, kernel = arrays(case, "float64")
        expected = value_and_gradients(convolve(lax.conv_general_dilated, case), x, kernel)
        fast = convolve(ops.conv_general_dilated, case)
        for dtype, tolerance in (("float64", 1e-12), ("float32", 2e-5)):
            actual = value_and_gradients(fast, x.astype(dtype), kernel.astype(dtype))
            for a, b in zip(actual, expected, strict=True):
                assert a.shape == b.shape
                assert a.dtype == dtype
                assert relative_error(a, b) < tolerance


@pytest.mark.parametrize("name", ["winograd", "stride 2", "pointwise", "depthwise"])
def test_what_accelerators_run_equals_xla(name):
    """XLA's convolution too, but by our gradients."""
    case = CASES[name]
    x, kernel = arrays(case, "float32")
    expected = value_and_gradients(convolve(lax.conv_general_dilated, case), x, kernel)
    with ops.plain():
        actual = value_and_gradients(convolve(ops.conv_general_dilated, case), x, kernel)
    for a, b in zip(actual, expected, strict=True):
        assert relative_error(a, b) < 1e-6


@pytest.mark.parametrize("name", ["winograd", "stride 2", "pointwise", "depthwise"])
def test_bfloat16(name):
    case = CASES[name]
    x, kernel = arrays(case, "bfloat16")
    actual = value_and_gradients(convolve(ops.conv_general_dilated, case), x, kernel)
    wide = [a.astype("float32") for a in (x, kernel)]
    expected = value_and_gradients(convolve(lax.conv_general_dilated, case), *wide)
    for a, b in zip(actual, expected, strict=True):
        assert a.dtype == jnp.bfloat16
        assert relative_error(a, b) < 0.02


def test_second_derivative():
    case = CASES["winograd"]
    x, kernel = arrays(case, "float32")

    def curvature(conv, kernel):
        gradient = jax.grad(lambda k: jnp.square(convolve(conv, case)(x, k)).sum())
        return jax.grad(lambda k: jnp.square(gradient(k)).sum())(kernel)

    actual = jax.jit(functools.partial(curvature, ops.conv_general_dilated))(kernel)
    expected = jax.jit(functools.partial(curvature, lax.conv_general_dilated))(kernel)
    assert relative_error(actual, expected) < 1e-4


@pytest.mark.skipif(jax.device_count() < 8, reason="needs 8 devices")
@pytest.mark.parametrize("name", ["winograd", "stride 2", "pointwise", "depthwise"])
def test_batch_split_over_devices(name):
    case = (32, *CASES[name][1:])
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    x, kernel = arrays(case, "float32")
    conv = convolve(ops.conv_general_dilated, case)
    expected = value_and_gradients(conv, x, kernel)
    x = jax.device_put(x, NamedSharding(mesh, P("data")))
    kernel = jax.device_put(kernel, NamedSharding(mesh, P()))
    for a, b in zip(value_and_gradients(conv, x, kernel), expected, strict=True):
        assert relative_error(a, b) < 2e-5

    def step(x, kernel):
        return jax.grad(lambda x, k: jnp.square(conv(x, k)).sum(), (0, 1))(x, kernel)

    hlo = jax.jit(step).lower(x, kernel).compile().as_text()
    assert "all-gather" not in hlo
    assert "all-to-all" not in hlo
    assert "collective-permute" not in hlo
    assert "all-reduce" in hlo  # of the kernel's gradient


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
@pytest.mark.parametrize("name", ["winograd", "stride 2", "pointwise", "depthwise"])
def test_accelerators_get_plain_convolutions(name, platform):
    case = CASES[name]
    x, kernel = arrays(case, "float32")

    def loss(x, kernel):
        return jnp.square(convolve(ops.conv_general_dilated, case)(x, kernel)).sum()

    exported = jax.export.export(jax.jit(jax.grad(loss, (0, 1))), platforms=[platform])(x, kernel)
    module = exported.mlir_module()
    assert module.count("stablehlo.convolution") == 3  # forward, input's and kernel's gradient
    assert "stablehlo.dot_general" not in module
