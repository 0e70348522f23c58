"""Attention against the formula that it stands for, gradients included."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cifar_jax import devices, ops

# N, Q, K, D, C; the last with scores so large that a CPU takes one image after the other.
SHAPES = [(2, 12, 12, 2, 16), (1, 1, 1, 1, 1), (3, 7, 5, 3, 9), (2, 520, 512, 2, 4)]


@pytest.mark.usefixtures("each_platform")
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-5), (np.float64, 1e-12)])
@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients_are_those_of_the_formula(shape, dtype, tolerance):
    with jax.enable_x64(dtype == np.float64):
        inputs, dy = arrays(shape, dtype)
        for ours, theirs in zip(
            run(ops.attention, inputs, dy), run(plain, inputs, dy), strict=True
        ):
            assert ours.dtype == theirs.dtype == dtype
            np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.usefixtures("each_platform")
def test_large_scores_do_not_overflow():
    (query, key, value), dy = arrays(SHAPES[0], np.float32)
    inputs = 100 * query, key, value
    for ours, theirs in zip(run(ops.attention, inputs, dy), run(plain, inputs, dy), strict=True):
        assert np.isfinite(ours).all()
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-3)


@pytest.mark.usefixtures("each_platform")
def test_half_precision_keeps_its_type_and_is_no_worse_than_it():
    inputs, dy = arrays(SHAPES[0], np.float32)
    halves = [x.astype(jnp.bfloat16) for x in (*inputs, dy)]
    wide = [x.astype(np.float32) for x in halves]
    results = run(ops.attention, halves[:3], halves[3])
    for ours, theirs in zip(results, run(plain, wide[:3], wide[3]), strict=True):
        assert ours.dtype == jnp.bfloat16
        np.testing.assert_allclose(ours.astype(np.float32), theirs, atol=0.02 * abs(theirs).max())


@pytest.mark.usefixtures("each_platform")
@pytest.mark.parametrize("images", [4, 10])
def test_each_device_mixes_its_own_images(images):
    """Though a CPU takes large ones in a loop, for which they could be gathered."""
    sharding = devices.batch_sharding(devices.make_mesh(images))
    inputs, dy = arrays((images, 520, 512, 2, 4), np.float32)
    compiled = jax.jit(partial(run, ops.attention), in_shardings=sharding, out_shardings=sharding)
    placed = jax.device_put((inputs, dy), sharding)
    assert "all-gather" not in compiled.lower(*placed).compile().as_text()
    for ours, theirs in zip(compiled(*placed), run(plain, inputs, dy), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def plain(query, key, value):
    weights = jax.nn.softmax(query @ key.swapaxes(1, 2))
    return weights @ value


def arrays(shape, dtype):
    n, queries, keys, depth, channels = shape
    rng = np.random.default_rng(0)
    shapes = [(n, queries, depth), (n, keys, depth), (n, keys, channels), (n, queries, channels)]
    *inputs, dy = [jnp.asarray(rng.standard_normal(s), dtype) for s in shapes]
    return inputs, dy


def run(f, inputs, dy):
    y, vjp = jax.vjp(f, *inputs)
    return y, *vjp(dy)
