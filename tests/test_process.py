"""What a process sets up for itself. Each test has a process of its own, which it may change."""

import platform
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest


def run(code: str, *environment: str) -> str:
    command = ["env", *environment, sys.executable, "-c", textwrap.dedent(code)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is glibc that is told")
def test_steps_use_the_memory_of_the_steps_before() -> None:
    """Temporaries of 128 MB are 32,768 pages; each fresh one would be a fault."""
    code = """
        import resource
        from cifar_jax import process
        process.keep_memory()
        process.configure_jax()
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
    assert int(run(code)) < 3 * 32_768  # of twenty times as many


def test_compiled_programs_are_kept_in_the_cache_folder_unless_told_otherwise(
    tmp_path: Path,
) -> None:
    code = """
        import jax
        from cifar_jax import process
        process.configure_jax()
        print(jax.config.jax_compilation_cache_dir)
        """
    ours = ("-u", "JAX_COMPILATION_CACHE_DIR", f"CIFAR_JAX_CACHE={tmp_path}")
    assert run(code, *ours) == str(tmp_path / "xla")
    assert run(code, f"JAX_COMPILATION_CACHE_DIR={tmp_path / 'own'}") == str(tmp_path / "own")
