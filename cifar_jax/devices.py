"""The device mesh of a run, and the compiler options for its devices.

The mesh has one axis, `data`. Its size changes no code. It spans the devices of all processes, and
every process runs the same program.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from cifar_jax import runtime
from cifar_jax.errors import UserError, counted


def make_mesh(
    batch_size: int, devices: int | None = None, available: Sequence[Any] | None = None
) -> Mesh:
    """Return a mesh over which a batch can be divided.

    Args:
      batch_size: images in a batch.
      devices: number of devices; None takes as many as divide the batch. With several processes
        all devices are used.
      available: devices to choose from; None means all that JAX has.

    Raises:
      UserError: there are fewer devices, or their number does not divide the batch.
    """
    available = jax.devices() if available is None else available
    if len({device.process_index for device in available}) > 1:
        if devices not in (None, len(available)):
            raise UserError(
                f"train.devices is {devices}, but the processes of this run have "
                f"{counted(len(available), 'device')} and must use all. Leave out train.devices."
            )
        devices = len(available)
    elif devices is None:
        devices = max(n for n in range(1, len(available) + 1) if batch_size % n == 0)
    if devices > len(available):
        raise UserError(
            f"train.devices is {devices}, but JAX finds only {counted(len(available), 'device')}. "
            "Lower train.devices or leave it out."
        )
    if batch_size % devices:
        raise UserError(
            f"a batch cannot be divided over {devices} devices. Choose a multiple of {devices} for "
            "batch_size, also in the phases."
        )
    return jax.make_mesh(
        (devices,), ("data",), axis_types=(AxisType.Auto,), devices=available[:devices]
    )


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding that has a copy of the array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """Return the sharding that divides the batch axis over the devices."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, "data"))


def put(arrays: Any, sharding: NamedSharding) -> Any:
    """Return a tree of NumPy arrays, equal in every process, as arrays on the devices."""
    return jax.tree.map(
        lambda array: jax.make_array_from_callback(
            array.shape, sharding, lambda index: array[index]
        ),
        arrays,
    )


_LARGE_BATCH = 64
"""Images per device from which the CPU options below apply. They were measured to help at 128 and
more, and to slow most networks down at 8."""


def compiler_options(mesh: Mesh, batch_size: int) -> dict[str, str | bool]:
    """Return XLA options that make programs for `batch_size` images faster on these devices.

    They affect speed only; docs/performance.md has the measurements.
    """
    large = batch_size // mesh.size >= _LARGE_BATCH
    return _cpu_options() if large and mesh.devices.flat[0].platform == "cpu" else {}


@cache
def _cpu_options() -> dict[str, str | bool]:
    """Return the compiler options for this machine's processor.

    By default XLA computes matrix products with the YNNPACK library and uses no 512-bit vectors.
    Intel processors with AVX-512 keep YNNPACK: they were not measured without it.
    """
    model, flags = runtime.processor()
    options: dict[str, str | bool] = {}
    if "avx512f" in flags:
        options["xla_cpu_prefer_vector_width"] = "512"
    if "avx2" in flags and ("avx512f" not in flags or "AMD" in model):
        options["xla_cpu_experimental_ynn_fusion_type"] = "LIBRARY_FUSION_TYPE_REDUCE"
    return {name: value for name, value in options.items() if _is_known(name, value)}


def _is_known(name: str, value: str | bool) -> bool:
    """Return whether this version of XLA has the option."""
    try:
        jax.jit(lambda: 0).lower().compile(compiler_options={name: value})
    except jax.errors.JaxRuntimeError:
        return False
    return True
