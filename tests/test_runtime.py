"""What a process sets up for itself, and what it computes on.

What changes a process for good has one of its own here.
"""

import platform
import resource
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

from cifar_jax import cpu, runtime
from cifar_jax.errors import UserError


def run(code: str, *environment: str) -> str:
    command = ["env", *environment, sys.executable, "-c", textwrap.dedent(code)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is glibc that is told")
def test_steps_use_the_memory_of_the_steps_before() -> None:
    """Temporaries of 128 MB are 32,768 pages; each fresh one would be a fault.

    On a busy machine a few calls overlap, and each takes memory of its own once.
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
    assert int(run(code)) < 8 * 32_768  # of twenty times as many


def test_compiled_programs_are_kept_in_the_cache_folder_unless_told_otherwise(
    tmp_path: Path,
) -> None:
    code = """
        import jax
        from cifar_jax import runtime
        runtime.configure_jax()
        print(jax.config.jax_compilation_cache_dir)
        """
    ours = ("-u", "JAX_COMPILATION_CACHE_DIR", f"CIFAR_JAX_CACHE={tmp_path}")
    features = runtime.cpu_features()
    assert run(code, *ours) == str(tmp_path / f"xla-{features}")
    assert run(code, f"JAX_COMPILATION_CACHE_DIR={tmp_path / 'own'}") == str(tmp_path / "own")


def test_caches_of_processors_that_differ_are_kept_apart(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    names = []
    for flags in ("flags : sse2 avx", "flags : avx sse2", "flags : sse2 avx avx512f", ""):
        (tmp_path / "cpuinfo").write_text(f"model name : Xeon\n{flags}\nbugs :\n")
        monkeypatch.setattr(cpu, "_CPUINFO", tmp_path / "cpuinfo")
        names.append(runtime.cpu_features())
    assert names[0] == names[1]
    assert len(set(names)) == 3


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ("JAX_DISABLE_JIT=1", "JAX_DISABLE_JIT is set, but"),
        ("JAX_ENABLE_X64=1", "JAX_ENABLE_X64 is set, but"),
        ("JAX_ENABLE_X64=perhaps", "JAX cannot start (invalid truth value 'perhaps'"),
        ("JAX_PLATFORMS=cuda", "JAX_PLATFORMS=cuda finds no device"),
        ("JAX_PLATFORMS=nonsense", "JAX_PLATFORMS=nonsense finds no device"),
    ],
)
def test_surroundings_that_jax_cannot_work_in(environment: str, words: str, tmp_path: Path) -> None:
    if environment == "JAX_PLATFORMS=cuda" and runtime.unused():
        pytest.skip("there is a GPU")
    refused_by(["evaluate", "nowhere"], environment, words, tmp_path)


@pytest.mark.parametrize(("verb", "told"), [(["models"], "basic"), (["summary", "basic"], "conv1")])
def test_what_computes_nothing_needs_no_device(verb: list[str], told: str, tmp_path: Path) -> None:
    command = ["env", "JAX_PLATFORMS=nonsense", sys.executable, "-m", "cifar_jax", *verb]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert told in done.stdout


def refused_by(verb: list[str], environment: str, words: str, tmp_path: Path) -> None:
    command = ["env", environment, sys.executable, "-m", "cifar_jax", *verb]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert words in done.stderr
    assert done.stderr.count("\n") == 1


def test_few_open_files() -> None:
    code = """
        import resource
        from cifar_jax import runtime
        runtime.allow_open_files()
        print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
        """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)

    def limited(soft: int, hard: int) -> subprocess.CompletedProcess[str]:
        limit = f'ulimit -Sn {soft} && ulimit -Hn {hard} && exec "$@"'
        return subprocess.run(["sh", "-c", limit, "sh", *command], capture_output=True, text=True)

    assert limited(20, hard).stdout.strip() == "256"
    assert limited(300, hard).stdout.strip() == "300"
    assert "only 20 files may be open" in limited(20, 20).stderr


@pytest.fixture
def nothing_asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As if JAX_PLATFORMS were not set, on a machine of which nothing is known."""
    platforms = jax.config.jax_platforms  # pyright: ignore[reportAttributeAccessIssue]
    for name in ("CUDA_VISIBLE_DEVICES", "TPU_NAME", "COLAB_TPU_ADDR", "TPU_ACCELERATOR_TYPE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(runtime, "_any", lambda folder, pattern: False)
    monkeypatch.setattr(runtime, "_PCI", Path("nowhere"))
    monkeypatch.setenv("PATH", "")
    jax.config.update("jax_platforms", None)
    yield
    jax.config.update("jax_platforms", platforms)


@pytest.fixture
def nvidia(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A driver that lists a GPU."""
    command = tmp_path / "nvidia-smi"
    command.write_text("#!/bin/sh\necho 'GPU 0: Tesla T4 (UUID: GPU-1)'\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    return command


@pytest.mark.usefixtures("nothing_asked")
def test_the_cpu_is_taken_without_a_word_where_there_is_nothing_else(capsys) -> None:
    runtime.require()
    runtime.require("cpu")
    assert capsys.readouterr() == ("", "")


@pytest.mark.usefixtures("nothing_asked", "nvidia")
def test_an_idle_gpu_is_told_of(capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime.require()
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "this machine has an NVIDIA GPU (Tesla T4), but JAX sees only the CPU" in said
    assert "cifar-jax[cuda12]" in said
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # hidden: meant
    runtime.require()
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    runtime.require("cpu")  # said: meant
    assert capsys.readouterr().err == ""


@pytest.mark.usefixtures("nothing_asked")
def test_a_driver_without_a_gpu_is_none(nvidia: Path, capsys) -> None:
    nvidia.write_text("#!/bin/sh\necho 'No devices were found'; exit 6\n")
    runtime.require()
    assert capsys.readouterr().err == ""


@pytest.mark.usefixtures("nothing_asked")
@pytest.mark.parametrize("sign", ["environment", "bus"])
def test_an_idle_tpu_is_told_of(
    sign: str, capsys, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if sign == "environment":
        monkeypatch.setenv("TPU_ACCELERATOR_TYPE", "v5litepod-1")
    else:
        for name, product in (("net", "0x0042"), ("tpu", "0x0063")):
            (tmp_path / name).mkdir()
            (tmp_path / name / "vendor").write_text("0x1ae0\n")
            (tmp_path / name / "device").write_text(f"{product}\n")
        monkeypatch.setattr(runtime, "_PCI", tmp_path)
    runtime.require()
    said = capsys.readouterr().err
    assert "this machine has a TPU, but JAX sees only the CPU" in said
    assert "cifar-jax[tpu]" in said


@pytest.mark.parametrize("device", ["gpu", "tpu"])
def test_a_device_that_is_not_there_is_refused(device: str, nothing_asked: None, capsys) -> None:
    with pytest.raises(UserError, match=f"there is no {device}, JAX sees only the cpu: to have"):
        runtime.require(device)
    jax.config.update("jax_platforms", "cpu")
    with pytest.raises(UserError, match="JAX_PLATFORMS=cpu hides any other: unset it"):
        runtime.require(device)
    assert capsys.readouterr() == ("", "")
