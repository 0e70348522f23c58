"""Test the input gradient of XLA's convolution against automatic differentiation."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cifar_jax.ops import direct


@pytest.mark.parametrize("padding", [((1, 1), (1, 1)), ((0, 1), (2, 1)), ((0, 0), (3, 0))], ids=str)
@pytest.mark.parametrize("kernel_shape", [(3, 3, 4, 6), (3, 2, 6, 4), (3, 3, 1, 5)], ids=str)
def test_input_gradient(kernel_shape: tuple[int, ...], padding: Any) -> None:
    _, _, inputs, outputs = kernel_shape
    channels = outputs if inputs == 1 else inputs  # One input means a depthwise convolution.
    random = np.random.default_rng(0)
    with jax.enable_x64(True):
        x = jnp.asarray(random.standard_normal((2, 7, 6, channels)))
        kernel = jnp.asarray(random.standard_normal(kernel_shape))
        y, vjp = jax.vjp(partial(direct.conv, kernel=kernel, strides=(1, 1), padding=padding), x)
        dy = jnp.asarray(random.standard_normal(y.shape))
        actual = direct.input_gradient(dy, kernel, (1, 1), padding, (7, 6))
        np.testing.assert_allclose(actual, vjp(dy)[0], rtol=1e-12, atol=1e-12)
