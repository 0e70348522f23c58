"""Beginnings that pass the input on or whiten it, as a network's own convolutions see them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from cifar_jax import data, models
from cifar_jax.data import cifar10
from cifar_jax.errors import UserError
from cifar_jax.models import initialization

EPS = 5e-4


def fresh(name: str) -> dict[str, Any]:
    return models.init_variables(models.create(name), jax.random.key(0))


def images(count: int = 300) -> np.ndarray:
    """Neighbours and channels that are correlated, as in photographs."""
    random = np.random.default_rng(0)
    x = random.standard_normal((count, 12, 12, 3))
    x = x.cumsum(1).cumsum(2) @ np.array([[1, 0.5, 0.2], [0, 0.8, 0.3], [0, 0, 0.6]])
    return ((x - x.mean((0, 1, 2))) / x.std((0, 1, 2))).astype(np.float32)


def convolved(x: Any, kernel: Any, padding: str = "VALID") -> np.ndarray:
    numbers = ("NHWC", "HWIO", "NHWC")
    found = jax.lax.conv_general_dilated(
        jnp.asarray(x), jnp.asarray(kernel), (1, 1), padding, dimension_numbers=numbers
    )
    return np.asarray(found, np.float64)


@pytest.mark.parametrize("name", ["basic", "net-inception", "resnet10"])
def test_dirac_filters_pass_their_input_on(name: str) -> None:
    before = flatten_dict(fresh(name))
    after = flatten_dict(initialization.dirac(fresh(name)))
    assert before.keys() == after.keys()
    changed = 0
    for path, kernel in after.items():
        own = np.asarray(before[path])
        if kernel.ndim != 4 or kernel.shape[0] == 1:
            np.testing.assert_array_equal(kernel, own)
            continue
        inputs = kernel.shape[2]
        x = np.random.default_rng(0).standard_normal((2, 6, 6, inputs)).astype(np.float32)
        passed = convolved(x, kernel, "SAME")[..., :inputs]
        np.testing.assert_array_equal(passed, x[..., : kernel.shape[3]])
        np.testing.assert_array_equal(kernel[..., inputs:], own[..., inputs:])
        assert kernel.dtype == own.dtype
        changed += 1
    assert changed


def test_depthwise_kernels_are_left_alone() -> None:
    before, after = fresh("resnet10-separable"), initialization.dirac(fresh("resnet10-separable"))
    blocks = [name for name in before["params"] if name.startswith("stage")]
    for block in blocks:
        jax.tree.map(np.testing.assert_array_equal, before["params"][block], after["params"][block])
    assert (after["params"]["conv1"]["kernel"] != before["params"]["conv1"]["kernel"]).any()


@pytest.mark.parametrize("size", [2, 3])
def test_whitened_patches_are_uncorrelated_and_of_variance_one(size: int) -> None:
    number = 3 * size**2
    x = images()
    kernel = initialization.whitening(x, (size, size, 3, 2 * number), eps=0)
    outputs = convolved(x, kernel).reshape(-1, 2 * number)
    positive, negative = outputs[:, ::2], outputs[:, 1::2]
    np.testing.assert_array_equal(positive, -negative)
    covariance = positive.T @ positive / len(positive)
    np.testing.assert_allclose(covariance, np.eye(number), atol=1e-2)


@pytest.mark.parametrize("count", [5, 256, 300])
@pytest.mark.parametrize("outputs", [5, 24, 64])
def test_whitening_is_what_its_definition_says(count: int, outputs: int) -> None:
    """Patch by patch, for fewer, as many and more filters than there are to fill."""
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
    kernel = initialization.whitening(jnp.asarray(x), (2, 2, 3, outputs), EPS)
    assert kernel.dtype == np.float32
    assert kernel.shape == (2, 2, 3, min(outputs, 24))
    np.testing.assert_allclose(kernel, np.stack(expected, -1)[..., :outputs], rtol=2e-3, atol=2e-3)
    again = initialization.whitening(x, (2, 2, 3, outputs), EPS)
    np.testing.assert_array_equal(kernel, again)


@pytest.mark.parametrize(("name", "filled"), [("basic", 6), ("net", 54), ("resnet10", 54)])
def test_the_first_convolution_whitens_and_all_else_stays(name: str, filled: int) -> None:
    before = flatten_dict(fresh(name))
    path = ("params", *initialization.first_convolution(fresh(name)))
    after = flatten_dict(initialization.whitened(fresh(name), images(), EPS))
    kernel = np.asarray(after.pop(path))
    own = np.asarray(before.pop(path))
    np.testing.assert_array_equal(
        kernel[..., :filled], initialization.whitening(images(), own.shape, EPS)
    )
    np.testing.assert_array_equal(kernel[..., filled:], own[..., filled:])
    assert kernel.shape == own.shape
    jax.tree.map(np.testing.assert_array_equal, after, before)


def test_directions_without_variance_stay_finite() -> None:
    grey = images()[..., :1].repeat(3, axis=-1)
    assert np.abs(initialization.whitening(grey, (3, 3, 3, 54), EPS)).max() < EPS**-0.5 * 1.01


@pytest.mark.parametrize("name", list(models.MODELS))
def test_the_first_convolution_of_every_network(name: str) -> None:
    shapes = models.variable_shapes(models.create(name))
    layer, leaf = initialization.first_convolution(shapes)
    assert shapes["params"][layer][leaf].shape[2] == 3


def test_images_and_networks_that_cannot_be() -> None:
    with pytest.raises(UserError, match=r"images of 1 channels.* takes 3"):
        initialization.whitened(fresh("net"), images()[..., :1])
    with pytest.raises(UserError, match="no convolution conv1"):
        initialization.first_convolution({"params": {"fc1": {"kernel": jnp.ones((3, 4))}}})
    with pytest.raises(UserError, match="no convolution conv1"):  # a parameter of this name
        initialization.first_convolution({"params": {"conv1": jnp.ones((2, 2, 3, 4))}})


@pytest.mark.skipif(
    not cifar10.folder(data.default_data_dir()).exists(),
    reason=f"CIFAR-10 is not prepared in {data.default_data_dir()}",
)
def test_real_images_are_whitened() -> None:
    """Where a direction varies much more than eps; the finest three colors hardly do."""
    dataset = data.load("cifar10")
    x = ((dataset.train.images[:1000] / 255 - dataset.mean) / dataset.std).astype(np.float32)
    kernel = initialization.whitening(x, (2, 2, 3, 24), EPS)
    outputs = convolved(x, kernel[..., ::2]).reshape(-1, 12)
    covariance = outputs.T @ outputs / len(outputs)
    np.testing.assert_allclose(covariance, np.diag(np.diag(covariance)), atol=1e-3)
    np.testing.assert_allclose(np.diag(covariance)[:8], 1, atol=0.05)
    assert np.diag(covariance).min() > 0.4
