"""Test that a machine without accelerators can lower train steps for GPUs and TPUs."""

import functools
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import pytest
from jax import export

from cifar_jax import catalog, models, ops
from cifar_jax.config import override
from cifar_jax.data import Dataset, Split
from cifar_jax.training import compilation
from cifar_jax.training.setup import Setup, build_setup

CONVOLUTION, PRODUCT = "stablehlo.convolution", "stablehlo.dot_general"
LOOPS = re.compile(r"stablehlo\.while|optimization_barrier")
PAPER = [name for name in catalog.names() if catalog.load(name).config.paper]
# Together, these networks contain every kind of layer.
FAST = ["basic", "net-attention", "resnet10-separable"]


def setup_of(experiment: str, settings: Sequence[str] = ()) -> Setup:
    """Return the setup of an experiment with blank images, which need no memory."""

    def blank(count: int) -> Split:
        images = np.broadcast_to(np.uint8(0), (count, 3072)).reshape(count, 32, 32, 3)
        return Split(images, np.broadcast_to(np.int32(0), count))

    classes, half = tuple(map(str, range(10))), (0.5, 0.5, 0.5)
    dataset = Dataset("cifar10", classes, blank(50_000), blank(10_000), half, half, fingerprint="")
    return build_setup(override(catalog.load(experiment).config, settings), dataset=dataset)


def programs(setup: Setup, variant: Any) -> dict[str, str]:
    """Return the StableHLO text of a train step for each accelerator, by platform name."""
    arguments = compilation.train_arguments(setup, variant)
    traced = compilation.train_function(setup, variant).trace(*arguments)
    platforms = ("cuda", "tpu")
    return {p: traced.lower(lowering_platforms=(p,)).as_text() for p in platforms}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n not in FAST)) for n in PAPER]
)
def test_accelerators_get_only_xla_operations(name: str) -> None:
    """The programs contain no host calls and no operations that are written for CPUs."""
    setup = setup_of(name)
    (variant,) = setup.plan.variants
    arguments = compilation.train_arguments(setup, variant)
    paths = jax.tree_util.tree_leaves_with_path(arguments[0].params)
    axes = [len(leaf.shape) for path, leaf in paths if "kernel" in jax.tree_util.keystr(path)]
    attentions = sum("query" in jax.tree_util.keystr(path) for path, _ in paths) // 2
    for platform, text in programs(setup, variant).items():
        # A layer needs three convolutions: for the output, and for the gradients of kernel and
        # input. The first layer needs only two, because the images need no gradient.
        assert text.count(CONVOLUTION) >= 3 * axes.count(4) - 1
        # Attention has two matrix products, and its gradient has five. On a TPU, cropping images
        # takes two more matrix products.
        crops = 2 * (platform == "tpu" and setup.config.data.crop_padding > 0)
        assert text.count(PRODUCT) == 3 * axes.count(2) + 7 * attentions + crops
        # The only loop is the loop over the train steps.
        assert len(LOOPS.findall(text)) == 1
        assert "custom_call" not in text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("speedrun-92", ["averaging.name=lookahead", "averaging.decay=0.8"]),
        ("speedrun-92", []),
        ("fast-net-bn-gap", []),
        ("fast-resnet10-separable", []),
    ],
)
def test_fast_experiments_lower_for_accelerators(name: str, settings: list[str]) -> None:
    setup = setup_of(name, settings)
    for variant in setup.plan.variants:
        for text in programs(setup, variant).values():
            assert CONVOLUTION in text
            assert "custom_call" not in text


@pytest.mark.parametrize("name", catalog.names())
def test_every_experiment_has_a_setup(name: str) -> None:
    setup = setup_of(name)
    sizes = {phase.image_size or 32 for phase in setup.config.phases}
    assert {variant.image_size for variant in setup.plan.variants} == {32, *sizes}


@pytest.mark.parametrize("name", models.MODELS)
def test_networks_can_be_exported_for_any_batch_size_and_platform(name: str) -> None:
    model = models.create(name)
    images = jax.ShapeDtypeStruct(export.symbolic_shape("batch, 32, 32, 3"), "float32")
    function = jax.jit(functools.partial(model.apply, train=False))
    with ops.force_platform():
        exported = export.export(function, platforms=("cpu", "cuda", "tpu"))(
            models.variable_shapes(model), images
        )
    (logits,) = exported.out_avals
    assert str(logits.shape) == "(batch, 10)"
    calls = re.findall(r"custom_call @(\w+)", exported.mlir_module())
    assert set(calls) <= {"shape_assertion"}
    if name == "basic":
        random = np.random.default_rng(0)
        variables = jax.tree.map(
            lambda leaf: random.uniform(-0.1, 0.1, leaf.shape).astype(leaf.dtype),
            models.variable_shapes(model),
        )
        for size in (1, 5):
            pixels = random.standard_normal((size, 32, 32, 3)).astype(np.float32)
            expected = function(variables, pixels)
            np.testing.assert_allclose(exported.call(variables, pixels), expected, atol=1e-5)
