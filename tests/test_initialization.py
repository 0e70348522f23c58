"""Test the initial values of convolutions: identity filters and whitening filters."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from cifar_jax import models
from cifar_jax.errors import UserError
from cifar_jax.models import initialization

EPS = 5e-4


def random_variables(name: str) -> dict[str, Any]:
    random = np.random.default_rng(0)
    shapes = models.variable_shapes(models.create(name))
    return jax.tree.map(lambda leaf: random.standard_normal(leaf.shape).astype(leaf.dtype), shapes)


def images(count: int = 300) -> np.ndarray:
    """Return random normalized images. Pixels and channels are correlated, as in photographs."""
    random = np.random.default_rng(0)
    x = random.standard_normal((count, 12, 12, 3))
    x = x.cumsum(1).cumsum(2) @ np.array([[1, 0.5, 0.2], [0, 0.8, 0.3], [0, 0, 0.6]])
    return ((x - x.mean((0, 1, 2))) / x.std((0, 1, 2))).astype(np.float32)


def convolve(x: Any, kernel: Any, padding: str = "VALID") -> np.ndarray:
    numbers = ("NHWC", "HWIO", "NHWC")
    y = jax.lax.conv_general_dilated(
        jnp.asarray(x), jnp.asarray(kernel), (1, 1), padding, dimension_numbers=numbers
    )
    return np.asarray(y, np.float64)


@pytest.mark.parametrize("name", ["basic", "net-inception", "resnet10-separable"])
def test_dirac_filters_return_their_input(name: str) -> None:
    before = flatten_dict(random_variables(name))
    after = flatten_dict(initialization.dirac(random_variables(name)))
    assert before.keys() == after.keys()
    for path, kernel in after.items():
        is_kernel = path[-1] == "kernel" and kernel.ndim == 4
        if not is_kernel or kernel.shape[0] == 1 or "depthwise" in path:
            np.testing.assert_array_equal(kernel, before[path])
            continue
        inputs = kernel.shape[2]
        x = np.random.default_rng(0).standard_normal((2, 6, 6, inputs)).astype(np.float32)
        outputs = convolve(x, kernel, "SAME")[..., :inputs]
        np.testing.assert_array_equal(outputs, x[..., : kernel.shape[3]])
        np.testing.assert_array_equal(kernel[..., inputs:], before[path][..., inputs:])
        assert kernel.dtype == before[path].dtype
    assert (after["params", "conv1", "kernel"] != before["params", "conv1", "kernel"]).any()


def test_dirac_filters_of_a_convolution_with_fewer_outputs_than_inputs() -> None:
    kernel = np.ones((3, 3, 6, 4), np.float32)
    changed = initialization.dirac({"params": {"conv": {"kernel": kernel}}})
    filters = changed["params"]["conv"]["kernel"]
    np.testing.assert_array_equal(filters[1, 1], np.eye(6, 4))
    assert filters.sum() == 4


@pytest.mark.parametrize("count", [5, 256, 300])
@pytest.mark.parametrize("outputs", [5, 24, 64])
def test_whitening_filters_equal_the_definition(count: int, outputs: int) -> None:
    """The patches have 12 eigenvectors. With their negatives, this makes at most 24 filters."""
    x = images(count)
    patches = [
        image[row : row + 2, column : column + 2].ravel()
        for image in x.astype(np.float64)
        for row in range(11)
        for column in range(11)
    ]
    values, vectors = np.linalg.eigh(np.transpose(patches) @ patches / len(patches))
    expected = []
    for value, vector in sorted(zip(values, vectors.T, strict=True), key=lambda pair: -pair[0]):
        scaled = vector * np.sign(vector[0]) / np.sqrt(value + EPS)
        expected += [scaled.reshape(2, 2, 3), -scaled.reshape(2, 2, 3)]
    kernel = initialization.whitening_filters(jnp.asarray(x), (2, 2, 3, outputs), EPS)
    assert kernel.dtype == np.float32
    assert kernel.shape == (2, 2, 3, min(outputs, 24))
    np.testing.assert_allclose(kernel, np.stack(expected, -1)[..., :outputs], rtol=2e-3, atol=2e-3)
    again = initialization.whitening_filters(x, (2, 2, 3, outputs), EPS)
    np.testing.assert_array_equal(kernel, again)


@pytest.mark.parametrize(("name", "filters"), [("basic", 6), ("net", 54), ("resnet10", 54)])
def test_whitened_changes_the_first_convolution_only(name: str, filters: int) -> None:
    before = flatten_dict(random_variables(name))
    path = ("params", *initialization.first_convolution(random_variables(name)))
    after = flatten_dict(initialization.whitened(random_variables(name), images(), EPS))
    kernel, old = np.asarray(after.pop(path)), np.asarray(before.pop(path))
    expected = initialization.whitening_filters(images(), old.shape, EPS)
    np.testing.assert_array_equal(kernel[..., :filters], expected)
    np.testing.assert_array_equal(kernel[..., filters:], old[..., filters:])
    assert kernel.shape == old.shape
    jax.tree.map(np.testing.assert_array_equal, after, before)


def test_directions_without_variance_stay_finite() -> None:
    gray = images()[..., :1].repeat(3, axis=-1)
    filters = initialization.whitening_filters(gray, (3, 3, 3, 54), EPS)
    assert np.abs(filters).max() < EPS**-0.5 * 1.01


@pytest.mark.parametrize("name", list(models.MODELS))
def test_the_first_convolution_takes_the_images(name: str) -> None:
    shapes = models.variable_shapes(models.create(name))
    layer, leaf = initialization.first_convolution(shapes)
    assert shapes["params"][layer][leaf].shape[2] == 3


def test_unsuitable_images_and_networks_are_refused() -> None:
    with pytest.raises(UserError, match=r"images have 1 channel, .* needs 3"):
        initialization.whitened(random_variables("net"), images()[..., :1])
    for params in ({"fc1": {"kernel": jnp.ones((3, 4))}}, {"conv1": jnp.ones((2, 2, 3, 4))}):
        with pytest.raises(UserError, match="first convolution named conv1"):
            initialization.first_convolution({"params": params})
