"""Test the device mesh, the sharding of arrays and the compiler options."""

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import PartitionSpec

from cifar_jax import devices, ops, runtime
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
    """Return a function that simulates a processor, with or without oneDNN."""
    real = devices.has_onednn

    def set_processor(model: str, *flags: str, onednn: bool = False) -> None:
        processor = runtime.Processor(model, frozenset(flags))
        monkeypatch.setattr(runtime, "processor", lambda: processor)
        monkeypatch.setattr(devices, "has_onednn", lambda: onednn)
        devices._cpu_options.cache_clear()

    yield set_processor
    devices._cpu_options.cache_clear()
    real.cache_clear()


@pytest.fixture
def any_option_is_known(monkeypatch) -> None:
    """Let XLA accept every compiler option. Empty the environment variable XLA_FLAGS."""
    monkeypatch.setattr(jax.stages.Lowered, "compile", lambda self, compiler_options: None)
    monkeypatch.setenv("XLA_FLAGS", "")


WITHOUT_YNNPACK = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE"}
WIDE_VECTORS = {"xla_cpu_prefer_vector_width": "512"}
ONEDNN = {"xla_cpu_experimental_onednn_custom_call": True} | WITHOUT_YNNPACK
AVX512 = ("avx2", "avx512f")
UNITS = (*AVX512, "avx512_bf16")


@pytest.mark.usefixtures("any_option_is_known")
@pytest.mark.parametrize(
    ("model", "flags", "options"),
    [
        ("AMD EPYC", ["avx2"], WITHOUT_YNNPACK),
        ("Intel Xeon", ["avx2"], WITHOUT_YNNPACK),
        ("AMD EPYC", AVX512, WITHOUT_YNNPACK | WIDE_VECTORS),
        ("Intel Xeon", AVX512, WIDE_VECTORS),
        ("Arm", ["asimd"], {}),
        ("x86-64 without AVX2", ["sse2", "avx"], {}),
        ("unknown", [], {}),
    ],
)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_compiler_options_depend_on_processor_and_batch_size(
    set_processor: Callable[..., None],
    model: str,
    flags: list[str],
    options: dict[str, Any],
    precision: str,
) -> None:
    mesh = devices.make_mesh(8)
    set_processor(model, *flags, onednn=True)
    assert devices.compiler_options(mesh, 128 * mesh.size, precision) == options
    assert devices.compiler_options(mesh, 8 * mesh.size, precision) == {}


@pytest.mark.usefixtures("any_option_is_known")
@pytest.mark.parametrize(
    ("model", "flags", "precisions"),
    [
        ("AMD EPYC", UNITS, {"float32", "bfloat16"}),
        ("AMD EPYC", AVX512, {"float32"}),
        ("AMD EPYC", ["avx2"], set()),
        ("Intel Xeon", AVX512, set()),
        ("Intel Xeon", UNITS, {"bfloat16"}),
        ("Intel Xeon", [*AVX512, "amx_bf16"], {"bfloat16"}),
        ("unknown", [], set()),
    ],
)
def test_onednn_is_used_where_it_was_measured(
    set_processor: Callable[..., None], model: str, flags: Sequence[str], precisions: set[str]
) -> None:
    several, one = devices.make_mesh(8), devices.make_mesh(8, 1)
    for precision in ("float32", "bfloat16"):
        set_processor(model, *flags, onednn=True)
        options = devices.compiler_options(one, 128, precision)
        assert (options.items() >= ONEDNN.items()) == (precision in precisions), precision
        assert not ONEDNN.keys() <= devices.compiler_options(several, 1024, precision).keys()
        small = devices.compiler_options(one, 8, precision)
        pays = precision == "bfloat16" and devices.has_bfloat16_units()
        assert small == (options if pays else {})
        set_processor(model, *flags, onednn=False)
        assert not ONEDNN.keys() <= devices.compiler_options(one, 128, precision).keys()


@pytest.mark.usefixtures("any_option_is_known")
@pytest.mark.parametrize("option", [*ONEDNN, *WIDE_VECTORS])
def test_flags_of_the_user_win(
    set_processor: Callable[..., None], monkeypatch, option: str
) -> None:
    set_processor("AMD EPYC", *UNITS, onednn=True)
    mesh = devices.make_mesh(8, 1)
    assert devices.compiler_options(mesh, 128).keys() == ONEDNN.keys() | WIDE_VECTORS.keys()
    monkeypatch.setenv("XLA_FLAGS", f"--xla_dump_to=/tmp/x --{option}=whatever")
    options = devices.compiler_options(mesh, 128).keys()
    assert option not in options
    # XLA calls oneDNN only if both options are set. If the user sets one of them, the package adds
    # neither.
    assert options == (WIDE_VECTORS if option in ONEDNN else ONEDNN).keys() - {option} | (
        WITHOUT_YNNPACK.keys() - {option}
    )


def test_options_that_xla_does_not_know_are_left_out(
    set_processor: Callable[..., None], monkeypatch
) -> None:
    def refuse(self: Any, compiler_options: Any) -> None:
        raise jax.errors.JaxRuntimeError("INVALID_ARGUMENT: No such compile option")

    devices.has_onednn.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(jax.stages.Lowered, "compile", refuse)
        assert not devices.has_onednn()
    set_processor("AMD EPYC", *UNITS, onednn=True)
    # XLA refuses all options, although `has_onednn` returns True.
    monkeypatch.setattr(jax.stages.Lowered, "compile", refuse)
    assert devices.compiler_options(devices.make_mesh(8), 1024) == {}
    assert devices.compiler_options(devices.make_mesh(8, 1), 128) == {}


@pytest.mark.usefixtures("any_option_is_known")
@pytest.mark.parametrize(
    ("flags", "onednn", "expected"),
    [
        ([], True, "no bfloat16 units"),
        (AVX512, True, "no bfloat16 units"),
        (UNITS, False, "jaxlib lacks oneDNN"),
        (UNITS, True, None),
    ],
)
def test_bfloat16_warning(
    set_processor: Callable[..., None], flags: Sequence[str], onednn: bool, expected: str | None
) -> None:
    set_processor("AMD EPYC", *flags, onednn=onednn)
    warning = devices.bfloat16_warning(devices.make_mesh(8, 1))
    assert warning is expected if expected is None else expected in str(warning)


class Layers(nn.Module):
    """Two convolutions with a BatchNorm between them, computed in a given type."""

    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        def conv(features: int, **options: Any) -> nn.Conv:
            return nn.Conv(
                features,
                (3, 3),
                dtype=self.dtype,
                conv_general_dilated=ops.conv_general_dilated,
                use_bias=False,
                **options,
            )

        x = conv(32)(x)
        ones = jnp.ones(32)
        x = ops.batch_norm(x, ones, 0 * ones, 1e-5)[0]
        return jnp.tanh(conv(32, feature_group_count=32)(x)).astype(jnp.float32)


def gradients(precision: str, **options: Any) -> tuple[str, Any]:
    """Compute the gradients of a network. Return the HLO of the program, and the gradients."""
    x = jnp.asarray(np.random.default_rng(0).standard_normal((8, 8, 8, 16)), precision)
    network = Layers(jnp.dtype(precision))
    variables = network.init(jax.random.key(0), x)
    gradient = jax.jit(jax.grad(lambda variables, x: network.apply(variables, x).sum(), (0, 1)))
    program = devices.compile_program(gradient, variables, x, precision=precision, **options)
    return program.as_text() or "", program(variables, x)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_programs_with_onednn(
    set_processor: Callable[..., None], monkeypatch, precision: str
) -> None:
    if not devices.has_onednn():
        pytest.skip("this jaxlib, or this processor, lacks oneDNN")
    flags = [f for f in os.environ["XLA_FLAGS"].split() if not any(name in f for name in ONEDNN)]
    monkeypatch.setenv("XLA_FLAGS", " ".join(flags))
    set_processor("AMD EPYC", *UNITS, onednn=True)
    one, several = devices.make_mesh(8, 1), devices.make_mesh(8)
    text, actual = gradients(precision, mesh=one, batch_size=128)
    plain_text, expected = gradients(precision, mesh=several, batch_size=1024)
    assert "__onednn" in text
    assert "__onednn" not in plain_text
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        a, b = np.float32(a), np.float32(b)
        error = np.linalg.norm(a - b) / np.linalg.norm(b)
        assert error < (1e-4 if precision == "float32" else 0.1)
