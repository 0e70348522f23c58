"""Test attention and its gradients against the attention formula."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cifar_jax import devices, ops

# XLA's optimizations are off, because compilation dominates the time of these tests.
QUICK = {"xla_backend_optimization_level": 0}
# Each case gives the number of images, queries and keys, the size of a key, and the size of a
# value. The scores of the last case need so much memory that a CPU processes one image at a time.
SHAPES = [(2, 12, 12, 2, 16), (1, 1, 1, 1, 1), (3, 7, 5, 3, 9), (2, 520, 512, 2, 4)]


def reference(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    return jax.nn.softmax(query @ key.swapaxes(1, 2)) @ value


def arrays(shape: tuple[int, ...], dtype: Any) -> tuple[list[jax.Array], jax.Array]:
    """Return random query, key and value arrays, and a random gradient of the output."""
    n, queries, keys, depth, channels = shape
    random = np.random.default_rng(0)
    shapes = [(n, queries, depth), (n, keys, depth), (n, keys, channels), (n, queries, channels)]
    *inputs, dy = [jnp.asarray(random.standard_normal(s), dtype) for s in shapes]
    return inputs, dy


def run(function: Any, inputs: list[jax.Array], dy: jax.Array) -> tuple[jax.Array, ...]:
    """Return a function's output and the gradients of its inputs."""
    y, vjp = jax.vjp(function, *inputs)
    return y, *vjp(dy)


def run_jitted(function: Any, inputs: list[jax.Array], dy: jax.Array) -> tuple[jax.Array, ...]:
    return jax.jit(partial(run, function), compiler_options=QUICK)(inputs, dy)


@pytest.mark.usefixtures("each_platform")
@pytest.mark.parametrize(
    ("shape", "dtype", "tolerance"),
    [*((shape, np.float64, 1e-12) for shape in SHAPES), (SHAPES[0], np.float32, 1e-5)],
)
def test_attention_equals_the_formula(shape: tuple[int, ...], dtype: Any, tolerance: float) -> None:
    with jax.enable_x64(dtype == np.float64):
        inputs, dy = arrays(shape, dtype)
        results = run_jitted(ops.attention, inputs, dy)
        for actual, expected in zip(results, run_jitted(reference, inputs, dy), strict=True):
            assert actual.dtype == expected.dtype == dtype
            np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.usefixtures("each_platform")
def test_large_scores_do_not_overflow() -> None:
    (query, key, value), dy = arrays(SHAPES[0], np.float32)
    inputs = [100 * query, key, value]
    results = run_jitted(ops.attention, inputs, dy)
    for actual, expected in zip(results, run_jitted(reference, inputs, dy), strict=True):
        assert np.isfinite(actual).all()
        np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.usefixtures("each_platform")
def test_bfloat16_is_accurate_to_its_precision() -> None:
    inputs, dy = arrays(SHAPES[0], np.float32)
    halves = [x.astype(jnp.bfloat16) for x in (*inputs, dy)]
    wide = [x.astype(np.float32) for x in halves]
    results = run_jitted(ops.attention, halves[:3], halves[3])
    for actual, expected in zip(results, run_jitted(reference, wide[:3], wide[3]), strict=True):
        assert actual.dtype == jnp.bfloat16
        tolerance = 0.02 * abs(expected).max()
        np.testing.assert_allclose(actual.astype(np.float32), expected, atol=tolerance)


@pytest.mark.parametrize("images", [4, 10])
def test_images_are_not_gathered_from_other_devices(images: int) -> None:
    sharding = devices.batch_sharding(devices.make_mesh(images))
    inputs, dy = arrays((images, 520, 512, 2, 4), np.float32)
    jitted = jax.jit(partial(run, ops.attention), in_shardings=sharding, out_shardings=sharding)
    placed = jax.device_put((inputs, dy), sharding)
    compiled = jitted.lower(*placed).compile()
    assert "all-gather" not in compiled.as_text()
    for actual, expected in zip(compiled(*placed), run_jitted(reference, inputs, dy), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)
