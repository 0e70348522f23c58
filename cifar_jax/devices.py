"""Devices: one mesh with the axis `data`. One device is the same code as many.

The mesh is over the devices of all processes of a run, and every process runs the same program.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from cifar_jax import cpu
from cifar_jax.errors import UserError


def make_mesh(
    batch_size: int, devices: int | None = None, available: Sequence[Any] | None = None
) -> Mesh:
    """A mesh over the first `devices` devices, or over as many as divide the batch.

    `available` are the devices to choose from, by default all that there are. If they belong to
    several processes, the mesh is over all of them.

    Raises:
      UserError: more devices asked for than there are, or a number that does not divide the batch.
    """
    available = jax.devices() if available is None else available
    if len({device.process_index for device in available}) > 1:
        if devices not in (None, len(available)):
            raise UserError(
                f"train.devices={devices}, but the processes have {len(available)}: "
                "of several processes all devices are used"
            )
        devices = len(available)
    elif devices is None:
        devices = max(n for n in range(1, len(available) + 1) if batch_size % n == 0)
    if devices > len(available):
        raise UserError(f"train.devices={devices}, but there are {len(available)}")
    if batch_size % devices:
        raise UserError(f"batch_size {batch_size} cannot be divided over {devices} devices")
    return jax.make_mesh(
        (devices,), ("data",), axis_types=(AxisType.Auto,), devices=available[:devices]
    )


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """Divided along `axis`, which is that of the batch."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, "data"))


_OWN_PRODUCTS_FROM = 64
"""Images a device, from which on XLA's own matrix products are taken to be faster on AVX2. Measured
at 8, where they are not for most networks, and from 128 on."""


@cache
def _without_ynn() -> dict[str, str | bool]:
    """Options by which XLA's CPU compiler leaves matrix products to its own kernels.

    By default it gives them to the library ynn (YNNPACK). With AVX-512 this was not measured, and
    stays as it is.
    """
    if "avx2" not in (flags := cpu.processor().flags) or "avx512f" in flags:
        return {}
    options: dict[str, str | bool] = {
        "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE"
    }
    try:
        jax.jit(lambda: 0).lower().compile(compiler_options=options)
    except jax.errors.JaxRuntimeError:  # an XLA without ynn, or with other names for this
        return {}
    return options


def compiler_options(mesh: Mesh, batch_size: int) -> dict[str, str | bool]:
    """What XLA is told when it compiles for these devices, to be fast: no result needs it.

    `batch_size` images are divided over them. docs/performance.md has what was measured.
    """
    large = batch_size // mesh.size >= _OWN_PRODUCTS_FROM
    return _without_ynn() if large and mesh.devices.flat[0].platform == "cpu" else {}


def put(arrays: Any, sharding: NamedSharding) -> Any:
    """NumPy arrays, the same in every process, as arrays on the devices."""
    return jax.tree.map(
        lambda array: jax.make_array_from_callback(
            array.shape, sharding, lambda index: array[index]
        ),
        arrays,
    )
