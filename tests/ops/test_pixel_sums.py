"""Test the sums over pixels against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cifar_jax.ops import pixel_sums as module
from cifar_jax.ops.pixel_sums import pixel_sums


# The first shape makes three blocks of two images. A block of a prime batch is one image or all
# images. A single image may be larger than a block. No row of 11 or 13 pixels can be split evenly.
@pytest.mark.parametrize(
    ("shape", "blocks"),
    [((6, 33, 31, 32), 3), ((7, 13, 31, 96), 7), ((13, 11, 1, 5), 1), ((1, 64, 64, 32), 1)],
    ids=str,
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_sums_equal_numpy(shape: tuple[int, ...], blocks: int, dtype: str) -> None:
    random = np.random.default_rng(0)
    x, y = (jnp.asarray(random.standard_normal(shape), dtype) for _ in range(2))
    terms = [lambda rows: rows[0], lambda rows: rows[0].astype("float32") * rows[1]]

    program = jax.make_jaxpr(lambda *arrays: pixel_sums(terms, arrays))(x, y)
    (scan,) = [e for e in program.eqns if e.primitive.name == "scan"]
    # The type is half as large, so a block may hold twice as many images.
    assert scan.params["length"] == blocks or dtype == "bfloat16"

    actual = jax.jit(lambda *arrays: pixel_sums(terms, arrays))(x, y)
    wide = np.float64(x), np.float64(y)
    for total, products in zip(actual, (wide[0], wide[0] * wide[1]), strict=True):
        assert total.dtype == jnp.float32
        size = np.abs(products).sum((0, 1, 2))
        assert (np.abs(total - products.sum((0, 1, 2))) < 1e-6 * size).all()


def test_prepare_changes_the_shape_of_each_block(monkeypatch) -> None:
    """`prepare` crops the first array to the smaller size of the second array."""
    monkeypatch.setattr(module, "_BLOCK_BYTES", 2 * 9 * 8 * 3 * 4)
    random = np.random.default_rng(0)
    x = jnp.asarray(random.standard_normal((6, 9, 8, 3)), "float32")
    y = jnp.asarray(random.standard_normal((6, 7, 5, 3)), "float32")
    counts = []

    def prepare(x: jax.Array, y: jax.Array) -> list[jax.Array]:
        counts.append(len(x))
        return [x[:, 2:, 3:], y]

    (total,) = pixel_sums([lambda rows: rows[0] * rows[1]], [x, y], prepare)
    assert set(counts) == {2}
    expected = (np.float64(x)[:, 2:, 3:] * np.float64(y)).sum((0, 1, 2))
    np.testing.assert_allclose(total, expected, rtol=1e-5)
