"""The device mesh of a run, and the compiler options for its devices.

The mesh has one axis, `data`, over the devices of all processes. Every process runs the same
program.
"""

import os
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from cifar_jax import ops, runtime
from cifar_jax.errors import UserError, counted
from cifar_jax.ops import direct


def make_mesh(
    batch_size: int, devices: int | None = None, available: Sequence[Any] | None = None
) -> Mesh:
    """Return a mesh over which a batch can be divided.

    Args:
      batch_size: number of images in a batch.
      devices: number of devices. None: the largest number that divides the batch size. A
        multi-process run always uses all devices.
      available: devices to choose from. None: all devices of JAX.

    Raises:
      UserError: fewer devices are available, or their number does not divide the batch size.
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
    """Return the sharding that puts a copy of an array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """Return the sharding that divides an array over the devices, along the batch axis."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, "data"))


def put(arrays: Any, sharding: NamedSharding) -> Any:
    """Put a tree of NumPy arrays on the devices. All processes must pass the same arrays."""
    return jax.tree.map(
        lambda array: jax.make_array_from_callback(
            array.shape, sharding, lambda index: array[index]
        ),
        arrays,
    )


_LARGE_BATCH = 64
"""Smallest number of images per device with which float32 programs use the CPU compiler options.

In measurements, the options made float32 steps faster with 128 or more images per device. With 8
images per device, they made steps of most networks slower. All bfloat16 steps became faster.
"""


def compile_program(
    program: jax.stages.Wrapped,
    *arguments: Any,
    mesh: Mesh,
    batch_size: int,
    precision: str = "float32",
) -> jax.stages.Compiled:
    """Compile a jitted function with the compiler options that are fastest for its batch size.

    The options change only the speed and, on a CPU, rounding. docs/performance.md lists
    measurements.

    Args:
      program: the jitted function.
      *arguments: example arguments, or their shapes and types.
      mesh: the devices that run the program.
      batch_size: number of images in a batch, over all devices together.
      precision: data type of the computation, `float32` or `bfloat16`.
    """
    options = compiler_options(mesh, batch_size, precision)
    onednn = mesh.size == 1 and options.get(_ONEDNN) is True
    with ops.force_platform("cpu-onednn") if onednn else nullcontext():
        return _compile(program.lower(*arguments), options)


def _compile(lowered: jax.stages.Lowered, options: dict[str, str | bool]) -> jax.stages.Compiled:
    """Compile a program, without the warning that a program with oneDNN calls cannot be cached."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Error writing persistent compilation cache")
        return lowered.compile(compiler_options=options)


def compiler_options(
    mesh: Mesh, batch_size: int, precision: str = "float32"
) -> dict[str, str | bool]:
    """Return the XLA options for `compile_program`, except for options that XLA_FLAGS sets."""
    large = batch_size // mesh.size >= _LARGE_BATCH
    pays = large or (precision == "bfloat16" and has_bfloat16_units() and has_onednn())
    if not pays or mesh.devices.flat[0].platform != "cpu":
        return {}
    return _cpu_options(mesh.size == 1, precision, os.environ.get("XLA_FLAGS", ""))


_ONEDNN = "xla_cpu_experimental_onednn_custom_call"
_YNNPACK = "xla_cpu_experimental_ynn_fusion_type"
_ONEDNN_OPTIONS = {_ONEDNN: True, _YNNPACK: "LIBRARY_FUSION_TYPE_REDUCE"}
"""XLA options that make XLA call the library oneDNN. Both are needed."""

_BFLOAT16_UNITS = frozenset({"avx512_bf16", "amx_bf16"})
"""Processor features for bfloat16. On a CPU with none of them, bfloat16 is slower than float32."""


def has_bfloat16_units() -> bool:
    """Return whether this machine's processor computes in bfloat16 faster than in float32."""
    return bool(_BFLOAT16_UNITS & runtime.processor().flags)


def bfloat16_warning(mesh: Mesh) -> str | None:
    """Return a warning for a bfloat16 run, or None if bfloat16 is fast on these devices."""
    if mesh.devices.flat[0].platform != "cpu":
        return None
    if not has_bfloat16_units():
        return "bfloat16 is slower than float32 on this CPU, which has no bfloat16 units"
    if not has_onednn():
        return (
            "bfloat16 is slower than float32 here, because the installed jaxlib lacks oneDNN: use "
            "jaxlib 0.11 or newer, which needs Python 3.12 or newer"
        )
    return None


@cache
def _cpu_options(single_device: bool, precision: str, xla_flags: str) -> dict[str, str | bool]:
    """Return the compiler options for this machine's processor.

    By default, XLA computes matrix products with the library YNNPACK, and uses no 512-bit vectors.
    The options replace YNNPACK by oneDNN or by XLA's own products if this was faster in
    measurements. Intel processors with AVX-512 keep YNNPACK in float32, because the alternatives
    were not measured on these processors.
    """
    model, flags = runtime.processor()
    options: dict[str, str | bool] = {}
    if "avx512f" in flags:
        options["xla_cpu_prefer_vector_width"] = "512"
    amd = "AMD" in model
    if "avx2" in flags and ("avx512f" not in flags or amd):
        options[_YNNPACK] = "LIBRARY_FUSION_TYPE_REDUCE"
    measured = amd and "avx512f" in flags if precision == "float32" else has_bfloat16_units()
    # If XLA_FLAGS sets a oneDNN option, leave all oneDNN options to the user.
    free = not any(f"--{name}" in xla_flags for name in _ONEDNN_OPTIONS)
    if single_device and measured and free and has_onednn():
        options |= _ONEDNN_OPTIONS
    return {
        name: value
        for name, value in options.items()
        if f"--{name}" not in xla_flags and _is_known(name, value)
    }


@cache
def has_onednn() -> bool:
    """Return whether XLA can call oneDNN on this machine. jaxlib 0.11 and newer contain oneDNN."""
    images, kernel = jnp.zeros((64, 8, 8, 64)), jnp.zeros((3, 3, 64, 64))
    program = jax.jit(partial(direct.conv, strides=(1, 1), padding=((1, 1), (1, 1))))
    try:
        compiled = _compile(program.lower(images, kernel), _ONEDNN_OPTIONS)
    except jax.errors.JaxRuntimeError:
        return False
    return "__onednn" in (compiled.as_text() or "")


def _is_known(name: str, value: str | bool) -> bool:
    """Return whether the installed version of XLA knows a compiler option."""
    try:
        jax.jit(lambda: 0).lower().compile(compiler_options={name: value})
    except jax.errors.JaxRuntimeError:
        return False
    return True
