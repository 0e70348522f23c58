"""Set-up of the process and the choice of device."""

import os
import platform
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import pytest

from cifar_jax import runtime


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a script in a new process, for settings that cannot be undone."""
    command = [sys.executable, "-c", textwrap.dedent(code)]
    env = os.environ | environment
    return subprocess.run(command, capture_output=True, text=True, env=env)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_steps_reuse_the_memory_of_earlier_steps() -> None:
    """Temporaries of 128 MB are 32,768 pages, each a page fault if it is fresh.

    On a busy machine some calls overlap, and each overlapping call needs memory of its own once.
    """
    code = """
        import resource
        from cifar_jax import runtime
        runtime.keep_memory()
        runtime.configure_jax()
        import jax
        import jax.numpy as jnp
        program = jax.jit(lambda x: jnp.cumsum(x * 2, axis=1).sum())
        x = jnp.ones((16, 2**20))
        program(x).block_until_ready()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(20):
            program(x).block_until_ready()
        print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
        """
    assert int(python(code).stdout) < 8 * 32_768  # of 20 * 32,768


def test_random_numbers_do_not_depend_on_environment_variables() -> None:
    code = """
        import jax
        from cifar_jax import runtime
        runtime.configure_jax()
        key = jax.random.key(0)
        print(jax.random.key_impl(key), jax.random.bits(key), jax.config.jax_threefry_partitionable)
        """
    variables = {
        "JAX_DEFAULT_PRNG_IMPL": "rbg",
        "JAX_THREEFRY_PARTITIONABLE": "0",
        "JAX_RANDOM_SEED_OFFSET": "7",
    }
    expected = f"threefry2x32 {jax.random.bits(jax.random.key(0))} True"
    assert python(code, **variables).stdout.strip() == expected


def test_a_late_set_up_is_reported_once(tmp_path: Path) -> None:
    code = """
        import jax
        jax.devices()
        from cifar_jax import runtime
        runtime.set_up()
        runtime.set_up()
        print(jax.config.jax_compilation_cache_dir)
        """
    process = python(code, JAX_COMPILATION_CACHE_DIR="", CIFAR_JAX_CACHE=str(tmp_path))
    assert process.stderr.count("\n") == 1
    assert "JAX was used before cifar_jax" in process.stderr
    if process.stdout.strip():  # JAX takes an empty variable for a folder
        pytest.skip("")


def test_compilation_caches_of_different_processors_are_separate(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    digests = []
    for flags in ("flags : sse2 avx", "flags : avx sse2", "flags : sse2 avx avx512f", ""):
        (tmp_path / "cpuinfo").write_text(f"model name : Xeon\n{flags}\nbugs :\n")
        monkeypatch.setattr(runtime, "_CPUINFO", tmp_path / "cpuinfo")
        digests.append(runtime._cpu_digest())
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


