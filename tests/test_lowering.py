"""Train steps become programs for GPUs and TPUs, on a machine that has neither."""

import functools
import json
import math
import re
import subprocess
import sys
from collections.abc import Sequence
from importlib import util
from pathlib import Path

import jax
import numpy as np
import pytest
from jax import export

from benchmarks import tpu_check
from cifar_jax import catalog, models, ops
from cifar_jax.config import override
from cifar_jax.training import compilation, setup
from cifar_jax.training.setup import Setup

CONVOLUTION, PRODUCT = "stablehlo.convolution", "stablehlo.dot_general"
LOOPS = re.compile(r"stablehlo\.while|optimization_barrier")


def workload(name: str, settings: Sequence[str] = ()) -> Setup:
    """An experiment at the size of CIFAR-10, without images."""
    config = override(catalog.load(name).config, settings)
    return setup.workload(config, dataset=tpu_check.no_images())


PAPER = [name for name in catalog.names() if catalog.load(name).config.paper]


@pytest.mark.parametrize("name", PAPER)
def test_accelerators_get_plain_convolutions(name: str) -> None:
    """What `ops` does for the CPU's sake (patches, tiles, shifts: products, loops and barriers)
    must not reach a GPU or TPU, and neither may anything that calls the host."""
    made = workload(name)
    (stage,) = made.plan.stages
    arguments = compilation.train_arguments(made, stage)
    paths = jax.tree_util.tree_leaves_with_path(arguments[0].params)
    axes = [len(leaf.shape) for path, leaf in paths if "kernel" in jax.tree_util.keystr(path)]
    attentions = sum("query" in jax.tree_util.keystr(path) for path, _ in paths) // 2
    traced = compilation.train_function(made, stage).trace(*arguments)
    for platform in ("cuda", "tpu"):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        # Forward, and the gradients of kernel and input; images need none.
        assert text.count(CONVOLUTION) >= 3 * axes.count(4) - 1
        # Attention has two products; its gradient makes the scores again. A TPU crops by two.
        crops = 2 * (platform == "tpu" and made.config.data.crop_padding > 0)
        assert text.count(PRODUCT) == 3 * axes.count(2) + 7 * attentions + crops
        assert len(LOOPS.findall(text)) == 1  # that over the steps of a call
        assert "custom_call" not in text


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("fast-net-bn-gap", []),
        ("fast-resnet10-separable", []),
        ("speedrun-92", []),
        ("speedrun-92", ["averaging.name=lookahead", "averaging.decay=0.8"]),
    ],
)
def test_better_recipes_become_programs_for_accelerators(name: str, settings: list[str]) -> None:
    """Muon, phases, whitening, averages: their products and loops are their own."""
    made = workload(name, settings)
    for stage in made.plan.stages:
        traced = compilation.train_function(made, stage).trace(
            *compilation.train_arguments(made, stage)
        )
        for platform in ("cuda", "tpu"):
            text = traced.lower(lowering_platforms=(platform,)).as_text()
            assert CONVOLUTION in text
            assert "custom_call" not in text


@pytest.mark.parametrize("name", [*catalog.names()])
def test_every_recipe_of_the_package_can_begin(name: str) -> None:
    config = catalog.load(name).config
    setup.check_beginning(config)
    made = workload(name)
    setup.check_average(config, made.plan.steps)
    assert {stage.image_size for stage in made.plan.stages} == {
        32,
        *(phase.image_size or 32 for phase in config.phases),
    }


def test_the_step_can_be_exported() -> None:
    made = workload("basic")
    (stage,) = made.plan.stages
    arguments = compilation.train_arguments(made, stage)
    function = compilation.train_function(made, stage)
    exported = export.export(function, platforms=("cuda", "tpu"))(*arguments)
    assert exported.nr_devices == made.mesh.size
    state = jax.tree.unflatten(jax.tree.structure(arguments[0]), exported.out_avals)
    assert state.params["conv1"]["kernel"].shape == (5, 5, 3, 6)


@pytest.mark.parametrize("name", models.MODELS)
def test_networks_can_be_exported_for_any_batch_and_platform(name: str) -> None:
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
        variables = models.init_variables(model, jax.random.key(0))
        for size in (1, 5):
            pixels = jax.random.normal(jax.random.key(1), (size, 32, 32, 3))
            answer = exported.call(variables, pixels)
            np.testing.assert_allclose(answer, model.apply(variables, pixels), atol=1e-6)


def test_tpu_check_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tpu_check.util, "find_spec", lambda name: None)
    assert tpu_check.main([]) == 2
    assert "EXTRA=tpu" in capsys.readouterr().err
    for wrong in (["--targets", "v9"], ["--precisions", "int8"], ["--experiments", "basik"]):
        with pytest.raises(SystemExit) as stopped:
            tpu_check.main(wrong)
        assert stopped.value.code == 2


@pytest.mark.skipif(util.find_spec("libtpu") is None, reason="needs libtpu, the extra `tpu`")
def test_the_basic_step_compiles_for_four_tpu_chips(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    command = [sys.executable, "-m", "benchmarks.tpu_check", "--experiments", "basic"]
    chosen = ["--targets", "v5e-4", "--precisions", "bfloat16", "--json", str(figures)]
    root = Path(__file__).parent.parent
    done = subprocess.run([*command, *chosen], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(figures.read_text())["rows"]
    assert row["problem"] == ""
    # A chip multiplies for its share of the batch: at least three times the forward pass's 0.65
    # million multiply-adds an image.
    assert 2 * 3 * 0.65e6 * 2 * 0.5 < row["gflop"] * 1e9 < 100e6
    # The images stay where they are: no copy of them, in whatever layout.
    assert row["temporaries_mb"] < 10
    # To and from HBM go two images, and weights and momentum at most, padded; the rest stays.
    assert 2 * 3072 < row["hbm_mb"] * 1e6 < 4 * (4 * 4 * 62_006) < row["moved_mb"] * 1e6
    assert math.isclose(row["memory_mb"], 45_000 * 3072 / 1e6, rel_tol=0.1)
    # All gradients in one, beside the loss and the count of correct answers.
    assert row["collectives"] == {"all-reduce": 3}
