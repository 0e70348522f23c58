"""One device is the same code as eight, and comes to the same."""

from collections.abc import Callable, Iterator
from typing import Any

import chex
import jax
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import PartitionSpec

from cifar_jax import cpu, devices
from cifar_jax.config import Config
from cifar_jax.data import pipeline
from cifar_jax.errors import UserError
from cifar_jax.models import layers
from cifar_jax.training import compilation, setup
from cifar_jax.training.evaluation import measure
from cifar_jax.training.step import TrainState

STEPS = 3


def test_the_suite_runs_on_eight_devices() -> None:
    assert jax.device_count() == 8


@pytest.mark.parametrize(
    ("batch_size", "asked", "size"),
    [(8, None, 8), (12, None, 6), (7, None, 7), (1, None, 1), (128, None, 8), (8, 2, 2), (6, 1, 1)],
)
def test_as_many_devices_as_divide_the_batch(batch_size: int, asked: int | None, size: int) -> None:
    made = devices.make_mesh(batch_size, asked)
    assert made.size == size
    assert made.axis_names == ("data",)


@pytest.mark.parametrize(
    ("batch_size", "asked", "message"),
    [(9, 9, "train.devices=9, but there are 8"), (8, 3, "cannot be divided over 3 devices")],
)
def test_devices_that_cannot_be(batch_size: int, asked: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        devices.make_mesh(batch_size, asked)


def test_shardings_divide_the_axis_they_name() -> None:
    made = devices.make_mesh(8)
    assert devices.replicated(made).spec == PartitionSpec()
    assert devices.batch_sharding(made).shard_shape((16, 3)) == (2, 3)
    assert devices.batch_sharding(made, axis=1).shard_shape((16, 8, 3)) == (16, 1, 3)


class Small(nn.Module):
    """A quickly compiled network with all that could tell the devices apart: BatchNorm, dropout."""

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        x = layers.Conv(16, (3, 3), padding=1, name="conv1")(x)
        x = layers.Pool(name="pool1")(nn.relu(layers.BatchNorm(name="bn1")(x, train=train)))
        x = layers.Conv(16, (3, 3), padding=1, strides=(2, 2), name="conv2")(x)
        x = nn.relu(layers.BatchNorm(name="bn2")(x, train=train))
        x = layers.GlobalAveragePool(name="pool")(x)
        x = nn.Dropout(0.5, deterministic=not train, name="dropout")(x)
        return nn.Dense(10, name="fc")(x)


def trained(config: Config, model: nn.Module | None) -> tuple[TrainState, dict[str, float]]:
    """The state after a few steps, and what evaluation says of it."""
    workload = setup.workload(config)
    workload = workload._replace(
        recipe=workload.recipe._replace(model=model or workload.recipe.model)
    )
    state = setup.init_state(workload, seed=0)
    training = compilation.compile_training(workload, 0, state, compilation.train_data(workload))
    images, labels = workload.validation
    evaluate = compilation.compile_evaluation(workload, state, images)
    epoch = workload.plan.epochs[0]
    take_steps = training.begin(epoch, training.order(epoch), workload.plan.steps)
    for _ in range(STEPS):
        state = take_steps(state, 1)
    return state, measure(evaluate(state.variables), labels)


@pytest.mark.parametrize("model", [None, Small()], ids=["basic", "batch-norm"])
def test_eight_devices_learn_what_one_does(
    make_config: Callable[..., Config], model: nn.Module | None
) -> None:
    """With augmentation and dropout, so that what is drawn at random is compared as well, and
    with BatchNorm, whose statistics are of the whole batch."""

    def config(devices: int) -> Config:
        return make_config(
            batch_size=8,
            data__train_images=8 * STEPS,
            data__validation=21,  # which eight devices have to pad
            data__crop_padding=4,
            data__flip=True,
            train__devices=devices,
        )

    one, one_measured = trained(config(1), model)
    eight, eight_measured = trained(config(8), model)
    for leaf in jax.tree.leaves(eight):
        assert leaf.sharding.is_fully_replicated
        assert len(leaf.sharding.device_set) == 8
    one, eight = jax.device_get((one, eight))
    assert eight.metrics.images == one.metrics.images == 8 * STEPS
    assert eight.metrics.correct == one.metrics.correct
    # Eight devices sum in another order; nothing else may differ.
    chex.assert_trees_all_close(eight, one, rtol=1e-4, atol=2e-5)
    assert eight_measured["accuracy"] == one_measured["accuracy"]
    np.testing.assert_allclose(eight_measured["loss"], one_measured["loss"], rtol=1e-4)


def test_each_device_works_on_its_share_of_the_batch(
    make_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    shares = []
    normalize = pipeline.normalize

    def spy(images: jax.Array, *rest: Any) -> jax.Array:
        result = normalize(images, *rest)
        jax.debug.inspect_array_sharding(
            result, callback=lambda sharding: shares.append(sharding.shard_shape(result.shape))
        )
        return result

    monkeypatch.setattr(pipeline, "normalize", spy)
    workload = setup.workload(make_config(batch_size=16, data__flip=True, train__devices=8))
    state = setup.init_state(workload, 0)
    compilation.compile_training(workload, 0, state, compilation.train_data(workload))
    assert shares == [(2, 32, 32, 3)]


@pytest.fixture
def processor(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Make this machine one whose processors are of this model, with these flags."""

    def become(model: str, *flags: str) -> None:
        monkeypatch.setattr(cpu, "processor", lambda: cpu.Processor(model, frozenset(flags)))
        devices._cpu_options.cache_clear()

    yield become
    devices._cpu_options.cache_clear()


OWN_PRODUCTS = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE"}
WIDE_VECTORS = {"xla_cpu_prefer_vector_width": "512"}


@pytest.mark.parametrize(
    ("model", "flags", "options"),
    [
        ("AMD EPYC", ["avx2"], OWN_PRODUCTS),
        ("Intel Xeon", ["avx2"], OWN_PRODUCTS),
        ("AMD EPYC", ["avx2", "avx512f"], OWN_PRODUCTS | WIDE_VECTORS),
        ("Intel Xeon", ["avx2", "avx512f"], WIDE_VECTORS),
        ("Arm", ["asimd"], {}),
        ("unknown", [], {}),
    ],
)
def test_programs_are_compiled_by_what_is_faster_on_the_processor(
    processor: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    model: str,
    flags: list[str],
    options: dict[str, Any],
) -> None:
    mesh = devices.make_mesh(8)
    monkeypatch.setattr(jax.stages.Lowered, "compile", lambda self, compiler_options: None)
    processor(model, *flags)
    assert devices.compiler_options(mesh, 128 * mesh.size) == options
    assert devices.compiler_options(mesh, 8 * mesh.size) == {}  # slower there


def test_an_option_that_this_xla_does_not_know_is_left_out(
    processor: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Any, compiler_options: Any) -> None:
        raise jax.errors.JaxRuntimeError("INVALID_ARGUMENT: No such compile option")

    processor("AMD EPYC", "avx2", "avx512f")
    monkeypatch.setattr(jax.stages.Lowered, "compile", refuse)
    assert devices.compiler_options(devices.make_mesh(8), 1024) == {}
