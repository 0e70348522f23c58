"""Test that each platform gets its own implementation of an operation."""

import threading
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cifar_jax import ops
from cifar_jax.data import augment, pipeline

IMAGES = jnp.ones((8, 16, 16, 16))
POINTS = jnp.ones((2, 9, 4))
BYTES = jnp.ones((4, 8, 8, 3), jnp.uint8)
PLACES = jnp.zeros(4, jnp.int32)
ACCELERATORS, CPUS = {"cuda", "tpu"}, {"cpu", "cpu-onednn"}


def convolve(x: jax.Array, kernel: jax.Array, groups: int = 1) -> jax.Array:
    return ops.conv_general_dilated(
        x,
        kernel,
        (1, 1),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def gradient_of(function: Callable[..., jax.Array]) -> Callable[..., Any]:
    return lambda *arguments: jax.grad(lambda *a: function(*a).sum(), range(len(arguments)))(
        *arguments
    )


def pool(function: Callable[..., jax.Array]) -> Callable[..., Any]:
    return lambda x: function(x, (2, 2), (2, 2))


class Case(NamedTuple):
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    mark: str
    """Name of an XLA operation that occurs in only one implementation."""
    platforms: set[str]
    """Platforms whose programs contain the operation with this name."""


CONVOLUTION = "stablehlo.convolution"
KERNELS = {
    "winograd": (jnp.ones((3, 3, 16, 16)), 1, ACCELERATORS),
    "im2col": (jnp.ones((1, 1, 16, 4)), 1, ACCELERATORS),
    "depthwise": (jnp.ones((3, 3, 1, 16)), 16, ACCELERATORS | {"cpu-onednn"}),
}
CASES = {
    **{
        name: Case(partial(convolve, groups=groups), (IMAGES, kernel), CONVOLUTION, platforms)
        for name, (kernel, groups, platforms) in KERNELS.items()
    },
    **{
        f"{name} gradient": Case(
            gradient_of(partial(convolve, groups=groups)), (IMAGES, kernel), CONVOLUTION, platforms
        )
        for name, (kernel, groups, platforms) in KERNELS.items()
    },
    "max_pool": Case(pool(ops.max_pool), (IMAGES,), "reduce_window", ACCELERATORS),
    "max_pool gradient": Case(
        gradient_of(pool(ops.max_pool)), (IMAGES,), "select_and_scatter", ACCELERATORS
    ),
    "avg_pool": Case(pool(ops.avg_pool), (IMAGES,), "reduce_window", ACCELERATORS),
    "attention": Case(ops.attention, (jnp.ones((2, 512, 1)),) * 3, "stablehlo.while", CPUS),
    "attention gradient": Case(
        gradient_of(ops.attention), (POINTS,) * 3, "optimization_barrier", CPUS
    ),
    "batch_norm": Case(
        lambda x: ops.batch_norm(x, jnp.ones(16), jnp.zeros(16), 1e-5),
        (IMAGES,),
        "stablehlo.maximum",  # replaces a negative variance by 0
        ACCELERATORS | {"cpu-onednn"},
    ),
    "take": Case(pipeline.take, (BYTES.reshape(4, -1), PLACES), "stablehlo.while", CPUS),
    "crop": Case(partial(augment.crop, largest=4), (BYTES, PLACES, PLACES), "dot_general", {"tpu"}),
}


def lowered(case: Case, platform: str) -> str:
    traced = jax.jit(lambda *arguments: case.function(*arguments)).trace(*case.arguments)
    return traced.lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_each_platform_gets_its_implementation(case: Case) -> None:
    for platform in CPUS | ACCELERATORS:
        expected = platform in case.platforms
        # Only `force_platform` can select `cpu-onednn`, because JAX has no platform of this name.
        if platform != "cpu-onednn":
            assert (case.mark in lowered(case, platform)) == expected, platform
        # The program is traced for `platform` but lowered for a CPU.
        with ops.force_platform(platform):
            assert (case.mark in lowered(case, "cpu")) == expected, platform
    with ops.force_platform():
        text = str(jax.make_jaxpr(lambda *a: case.function(*a))(*case.arguments))
    assert "platform_index" not in text


def has_convolution() -> bool:
    return CONVOLUTION in lowered(CASES["winograd"], "cpu")


def test_contexts_nest_and_end_after_an_error() -> None:
    with ops.force_platform():
        with ops.force_platform("cpu"):
            assert not has_convolution()
        with pytest.raises(ZeroDivisionError), ops.force_platform("cpu"):
            raise ZeroDivisionError
        assert has_convolution()
    assert not has_convolution()


def test_other_threads_are_not_affected() -> None:
    results = []
    with ops.force_platform():
        thread = threading.Thread(target=lambda: results.append(has_convolution()))
        thread.start()
        thread.join()
    assert results == [False]


def test_a_gradient_traced_after_the_context_uses_its_platform() -> None:
    with ops.force_platform():
        y, backward = jax.vjp(lambda x: ops.max_pool(x, (2, 2), (2, 2)), IMAGES)
    assert "platform_index" not in str(jax.make_jaxpr(backward)(y))
    np.testing.assert_array_equal(backward(y)[0][0, :2, :2, 0], [[1, 0], [0, 0]])
