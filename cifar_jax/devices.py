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


_MANY_IMAGES = 64
"""Images a device, from which on XLA's own matrix products are taken to be faster. Measured at 8,
where for most networks they are not, and from 128 on."""


@cache
def _cpu_options() -> dict[str, str | bool]:
    """What makes XLA's CPU compiler fast on this machine's processors, of which it knows less.

    By default it gives matrix products to the library ynn (YNNPACK), and does not use vectors of
    512 bits. Xeons with AVX-512 were not measured without ynn, which they keep.
    """
    model, flags = cpu.processor()
    options: dict[str, str | bool] = {}
    if "avx512f" in flags:
        options["xla_cpu_prefer_vector_width"] = "512"
    if "avx2" in flags and ("avx512f" not in flags or "AMD" in model):
        options["xla_cpu_experimental_ynn_fusion_type"] = "LIBRARY_FUSION_TYPE_REDUCE"
    return {name: value for name, value in options.items() if _is_known(name, value)}


def _is_known(name: str, value: str | bool) -> bool:
    """Whether this XLA has such an option, and ynn."""
    try:
        jax.jit(lambda: 0).lower().compile(compiler_options={name: value})
    except jax.errors.JaxRuntimeError:
        return False
    return True


def compiler_options(mesh: Mesh, batch_size: int) -> dict[str, str | bool]:
    """What XLA is told when it compiles for these devices, to be fast: no result needs it.

    `batch_size` images are divided over them. docs/performance.md has what was measured.
    """
    large = batch_size // mesh.size >= _MANY_IMAGES
    return _cpu_options() if large and mesh.devices.flat[0].platform == "cpu" else {}


def put(arrays: Any, sharding: NamedSharding) -> Any:
    """NumPy arrays, the same in every process, as arrays on the devices."""
    return jax.tree.map(
        lambda array: jax.make_array_from_callback(
            array.shape, sharding, lambda index: array[index]
        ),
        arrays,
    )
