"""Test the device mesh, the sharding of arrays and the compiler options."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import pytest
from jax.sharding import PartitionSpec

from cifar_jax import devices, runtime
from cifar_jax.errors import UserError


def test_the_tests_run_on_eight_devices() -> None:
    assert jax.device_count() == 8


@pytest.mark.parametrize(
    ("batch_size", "requested", "size"),
    [(8, None, 8), (12, None, 6), (7, None, 7), (1, None, 1), (128, None, 8), (8, 2, 2), (6, 1, 1)],
)
def test_a_mesh_has_as_many_devices_as_divide_the_batch(
    batch_size: int, requested: int | None, size: int
) -> None:
    mesh = devices.make_mesh(batch_size, requested)
    assert mesh.size == size
    assert mesh.axis_names == ("data",)


def test_impossible_numbers_of_devices_are_refused() -> None:
    with pytest.raises(UserError, match=r"train\.devices is 9, but JAX finds only 8 devices"):
        devices.make_mesh(9, 9)
    with pytest.raises(UserError, match="a batch cannot be divided over 3 devices"):
        devices.make_mesh(8, 3)


def test_shardings_divide_the_batch_axis() -> None:
    mesh = devices.make_mesh(8)
    assert devices.replicated(mesh).spec == PartitionSpec()
    assert devices.batch_sharding(mesh).shard_shape((16, 3)) == (2, 3)
    assert devices.batch_sharding(mesh, axis=1).shard_shape((16, 8, 3)) == (16, 1, 3)


@pytest.fixture
def set_processor(monkeypatch) -> Iterator[Callable[..., None]]:
    """Return a function that simulates a machine with a given processor."""

    def set_processor(model: str, *flags: str) -> None:
        processor = runtime.Processor(model, frozenset(flags))
        monkeypatch.setattr(runtime, "processor", lambda: processor)
        devices._cpu_options.cache_clear()

    yield set_processor
    devices._cpu_options.cache_clear()


WITHOUT_YNNPACK = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE"}
WIDE_VECTORS = {"xla_cpu_prefer_vector_width": "512"}


@pytest.mark.parametrize(
    ("model", "flags", "options"),
    [
        ("AMD EPYC", ["avx2"], WITHOUT_YNNPACK),
        ("Intel Xeon", ["avx2"], WITHOUT_YNNPACK),
        ("AMD EPYC", ["avx2", "avx512f"], WITHOUT_YNNPACK | WIDE_VECTORS),
        ("Intel Xeon", ["avx2", "avx512f"], WIDE_VECTORS),
        ("Arm", ["asimd"], {}),
        ("unknown", [], {}),
    ],
)
def test_compiler_options_depend_on_processor_and_batch_size(
    set_processor: Callable[..., None],
    monkeypatch,
    model: str,
    flags: list[str],
    options: dict[str, Any],
) -> None:
    mesh = devices.make_mesh(8)
    monkeypatch.setattr(jax.stages.Lowered, "compile", lambda self, compiler_options: None)
    set_processor(model, *flags)
    assert devices.compiler_options(mesh, 128 * mesh.size) == options
    assert devices.compiler_options(mesh, 8 * mesh.size) == {}


def test_compiler_options_that_xla_does_not_know_are_left_out(
    set_processor: Callable[..., None], monkeypatch
) -> None:
    def refuse(self: Any, compiler_options: Any) -> None:
        raise jax.errors.JaxRuntimeError("INVALID_ARGUMENT: No such compile option")

    set_processor("AMD EPYC", "avx2", "avx512f")
    monkeypatch.setattr(jax.stages.Lowered, "compile", refuse)
    assert devices.compiler_options(devices.make_mesh(8), 1024) == {}
