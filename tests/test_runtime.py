"""Test the setup of the process and the choice of the device."""

import os
import platform
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import pytest

from cifar_jax import runtime
from cifar_jax.errors import UserError


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Python code in a new process, because some process settings cannot be undone."""
    command = [sys.executable, "-c", textwrap.dedent(code)]
    env = os.environ | environment
    return subprocess.run(command, capture_output=True, text=True, env=env)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_steps_reuse_the_memory_of_earlier_steps() -> None:
    """The number of page faults shows whether a step gets new memory.

    A step needs 128 MiB for temporary arrays, so new memory causes 32,768 page faults. Some page
    faults are allowed, because steps that overlap on a busy machine cannot share memory.
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
    # New memory in each of the 20 steps would cause 20 × 32,768 page faults.
    assert int(python(code).stdout) < 8 * 32_768


def test_jax_settings_do_not_depend_on_environment_variables(tmp_path: Path) -> None:
    code = """
        import jax
        from cifar_jax import runtime
        runtime.configure_jax()
        print(jax.random.bits(jax.random.key(0)), jax.config.jax_threefry_partitionable)
        print(jax.config.jax_compilation_cache_dir)
        """
    process = python(
        code,
        JAX_DEFAULT_PRNG_IMPL="rbg",
        JAX_THREEFRY_PARTITIONABLE="0",
        JAX_RANDOM_SEED_OFFSET="7",
        JAX_COMPILATION_CACHE_DIR=str(tmp_path),
    )
    numbers, folder = process.stdout.splitlines()
    assert numbers == f"{jax.random.bits(jax.random.key(0))} True"
    assert folder == str(tmp_path)
    assert process.stderr == ""


def test_nothing_is_cached_without_a_home_folder(tmp_path: Path) -> None:
    code = """
        import os, pwd
        os.chdir(os.environ["FOLDER"])
        for name in ("HOME", "XDG_CACHE_HOME", "CIFAR_JAX_CACHE", "TFDS_DATA_DIR"):
            os.environ.pop(name, None)
        pwd.getpwuid = {}.__getitem__
        from cifar_jax import data, runtime
        runtime.set_up()
        print(len(data.load("digits").train.labels), runtime.cache_dir())
        """
    process = python(code, PYTHONPATH=str(Path(__file__).parents[1]), FOLDER=str(tmp_path))
    count, folder = process.stdout.split()
    assert count == "1437"
    assert not Path(folder).exists()
    assert process.stderr == (
        "cifar-jax: there is no home folder, so nothing is cached; to cache, set CIFAR_JAX_CACHE\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_a_late_set_up_is_reported_once(tmp_path: Path) -> None:
    code = """
        import os
        del os.environ["JAX_COMPILATION_CACHE_DIR"]
        import jax
        jax.devices()
        from cifar_jax import runtime
        runtime.set_up()
        runtime.set_up()
        print(jax.config.jax_compilation_cache_dir)
        """
    process = python(code, CIFAR_JAX_CACHE=str(tmp_path))
    assert process.stderr.startswith("cifar-jax: JAX was used before cifar_jax")
    assert process.stderr.count("\n") == 1
    assert process.stdout.strip() == str(tmp_path / f"xla-{runtime._cpu_digest()}")


def test_compilation_caches_of_different_processors_are_separate(
    monkeypatch, tmp_path: Path
) -> None:
    digests = []
    for flags in ("flags : sse2 avx", "flags : avx sse2", "flags : sse2 avx avx512f", ""):
        (tmp_path / "cpuinfo").write_text(f"model name : Xeon\n{flags}\nbugs :\n")
        monkeypatch.setattr(runtime, "_CPUINFO", tmp_path / "cpuinfo")
        digests.append(runtime._cpu_digest())
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("jax_disable_jit", True),
        ("jax_enable_x64", True),
        ("jax_debug_infs", True),
        ("jax_numpy_rank_promotion", "raise"),
        ("jax_transfer_guard", "disallow"),
    ],
)
def test_jax_settings_that_training_cannot_work_with_are_refused(
    name: str, value: Any, monkeypatch
) -> None:
    monkeypatch.setattr(type(jax.config), name, value)
    with pytest.raises(UserError, match=f"{name.upper()} is set, but"):
        runtime.configure_jax()


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("JAX_ENABLE_X64", "perhaps", "JAX cannot start: invalid truth value 'perhaps'"),
        ("JAX_PLATFORMS", "cuda", "JAX finds no device with JAX_PLATFORMS=cuda"),
        ("JAX_PLATFORMS", "nonsense", "JAX finds no device with JAX_PLATFORMS=nonsense"),
    ],
)
def test_wrong_environment_variables_are_reported_in_one_line(
    variable: str, value: str, message: str
) -> None:
    if value == "cuda" and runtime.find_accelerator() == "gpu":
        pytest.skip("this machine has a GPU")
    code = "import sys; from cifar_jax import cli; sys.exit(cli.run(['evaluate', 'runs/none']))"
    process = python(code, **{variable: value})
    assert process.returncode == 2
    assert process.stderr.startswith(f"cifar-jax: {message}")
    assert process.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("soft", "hard", "output"),
    [(20, 300, "256"), (300, 300, "300"), (20, 20, "only 20 open files are allowed")],
)
def test_the_limit_of_open_files_is_raised(soft: int, hard: int, output: str) -> None:
    code = "import resource; from cifar_jax import runtime; runtime.allow_open_files(); "
    code += "print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])"
    command = ["sh", "-c", f'ulimit -Sn {soft} && ulimit -Hn {hard} && exec "$@"', "sh"]
    done = subprocess.run([*command, sys.executable, "-c", code], capture_output=True, text=True)
    assert output in done.stdout + done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="other systems ignore `ulimit -v`")
def test_a_low_limit_on_memory_is_refused() -> None:
    code = "import sys; from cifar_jax import cli; sys.exit(cli.run(['evaluate', 'runs/none']))"
    command = ["sh", "-c", 'ulimit -v 500000 && exec "$@"', "sh", sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == (
        "cifar-jax: only 0.51 GB of memory are allowed: raise the limit to at least 2 GB with "
        "`ulimit -v 2000000`\n"
    )


def test_too_few_threads_are_refused(monkeypatch) -> None:
    start, count = threading.Thread.start, threading.active_count()

    def refuse(thread: threading.Thread) -> None:
        if threading.active_count() >= count + 10:
            raise RuntimeError("can't start new thread")
        start(thread)

    runtime.check_memory_and_threads()
    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(UserError, match="only 10 threads can be started, and about"):
        runtime.check_memory_and_threads()
    assert threading.active_count() == count


@pytest.fixture
def bare_machine(monkeypatch) -> Iterator[None]:
    """Simulate a machine without accelerators and without the variable JAX_PLATFORMS."""
    platforms = jax.config.jax_platforms  # pyright: ignore[reportAttributeAccessIssue]
    for name in ("CUDA_VISIBLE_DEVICES", "TPU_NAME", "COLAB_TPU_ADDR", "TPU_ACCELERATOR_TYPE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(runtime, "_DEV", Path("nowhere"))
    monkeypatch.setenv("PATH", "")
    jax.config.update("jax_platforms", None)
    yield
    jax.config.update("jax_platforms", platforms)


@pytest.mark.usefixtures("bare_machine")
def test_the_cpu_is_used_silently_on_a_machine_without_accelerators(capsys) -> None:
    runtime.require()
    runtime.require("cpu")
    assert capsys.readouterr() == ("", "")


@pytest.mark.usefixtures("bare_machine")
def test_an_unused_gpu_is_reported(tmp_path: Path, capsys, monkeypatch) -> None:
    command = tmp_path / "nvidia-smi"
    command.write_text("#!/bin/sh\necho 'GPU 0: Tesla T4 (UUID: GPU-1)'\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    runtime.require()
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "this machine has a GPU, but JAX sees only the CPU" in message
    assert "cifar-jax[cuda12]" in message
    # No message is printed if the user chooses the CPU or hides the GPU, or if there is no GPU.
    runtime.require("cpu")
    with monkeypatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        runtime.require()
    command.write_text("#!/bin/sh\necho 'No devices were found'; exit 6\n")
    runtime.require()
    assert capsys.readouterr().err == ""


@pytest.mark.usefixtures("bare_machine")
def test_an_unused_tpu_is_reported(capsys, monkeypatch, tmp_path: Path) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("TPU_ACCELERATOR_TYPE", "v5litepod-1")
        runtime.require()
    assert "this machine has a TPU, but JAX sees only the CPU" in capsys.readouterr().err
    (tmp_path / "accel0").touch()
    monkeypatch.setattr(runtime, "_DEV", tmp_path)
    assert runtime.find_accelerator() == "tpu"


@pytest.mark.usefixtures("bare_machine")
@pytest.mark.parametrize("device", ["gpu", "tpu"])
def test_a_missing_device_is_refused(device: str, capsys) -> None:
    with pytest.raises(UserError, match=f"JAX finds no {device.upper()}, only the CPU. Install"):
        runtime.require(device)
    jax.config.update("jax_platforms", "cpu")
    with pytest.raises(UserError, match="JAX_PLATFORMS=cpu hides other devices: unset it"):
        runtime.require(device)
    assert capsys.readouterr() == ("", "")
