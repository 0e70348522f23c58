"""`ops.plain`: what is traced is the named form, whatever was traced before or elsewhere."""

import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cifar_jax import ops
from cifar_jax.data import augment, pipeline

IMAGES = jnp.ones((8, 16, 16, 16))
KERNEL = jnp.ones((3, 3, 16, 16))
POINTS = jnp.ones((2, 9, 4))
BYTES = jnp.ones((4, 8, 8, 3), jnp.uint8)
PLACES = jnp.zeros(4, jnp.int32)

# Function, arguments, and what one of its two forms has and the other has not.
OPERATIONS: dict[str, tuple[Callable[..., Any], tuple[Any, ...], str]] = {
    "convolution": (
        lambda x, kernel: ops.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        ),
        (IMAGES, KERNEL),
        "dot_general",
    ),
    "max_pool": (lambda x: ops.max_pool(x, (2, 2), (2, 2)), (IMAGES,), "slice["),
    "avg_pool": (lambda x: ops.avg_pool(x, (2, 2), (2, 2)), (IMAGES,), "slice["),
    "attention": (
        lambda x: jax.grad(lambda key: ops.attention(x, key, x).sum())(x),
        (POINTS,),
        "optimization_barrier",
    ),
    "batch_norm": (
        lambda x: ops.batch_norm(x, jnp.ones(16), jnp.zeros(16), 1e-5),
        (IMAGES,),
        " max ",  # no variance is negative
    ),
    "take": (pipeline.take, (BYTES.reshape(4, -1), PLACES), "scan"),
    "crop": (partial(augment.crop, largest=4), (BYTES, PLACES, PLACES), "dot_general"),
}


def traced(name: str) -> str:
    function, arguments, _ = OPERATIONS[name]
    return str(jax.make_jaxpr(lambda *arguments: function(*arguments))(*arguments))


@pytest.mark.parametrize("name", OPERATIONS)
def test_the_named_form_alone_is_traced_whatever_was_before(name: str) -> None:
    special = "tpu" if name == "crop" else "cpu"
    mark = OPERATIONS[name][2]
    for _ in range(2):
        assert "platform_index" in traced(name)
        with ops.plain():
            plain = traced(name)
        with ops.plain(special):
            fast = traced(name)
        assert "platform_index" not in plain + fast
        assert (mark in plain) != (mark in fast)


def test_it_ends_with_an_error_and_within_itself() -> None:
    with ops.plain():
        with ops.plain("cpu"):
            assert "dot_general" in traced("convolution")
        with pytest.raises(ZeroDivisionError), ops.plain("cpu"):
            raise ZeroDivisionError
        assert "dot_general" not in traced("convolution")
    assert "platform_index" in traced("convolution")


def test_other_threads_go_on_as_before() -> None:
    texts = []
    with ops.plain():
        thread = threading.Thread(target=lambda: texts.append(traced("convolution")))
        thread.start()
        thread.join()
    assert "platform_index" in texts[0]


def test_a_gradient_that_is_traced_later_is_of_the_same_form() -> None:
    with ops.plain():
        y, backward = jax.vjp(lambda x: ops.max_pool(x, (2, 2), (2, 2)), IMAGES)
    text = str(jax.make_jaxpr(backward)(y))
    assert "platform_index" not in text
    np.testing.assert_array_equal(backward(y)[0][0, :2, :2, 0], [[1, 0], [0, 0]])
