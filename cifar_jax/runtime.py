"""Set up this process for training: memory, open files, JAX settings and the device.

Importing this module does not import JAX.
"""

import ctypes
import hashlib
import logging
import os
import platform
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple

from cifar_jax.errors import UserError
from cifar_jax.files import home_path

# Parameters of the glibc function mallopt, which configures memory allocation.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8

_OPEN_FILES = 256
"""Number of files that a run may need to open at the same time."""

_ADDRESS_SPACE = 2 * 10**9
"""Bytes of address space that a small run needs, including JAX. Measured: 1.5 to 1.8 GB."""

_THREADS, _THREADS_PER_CORE = 32, 2
"""Number of threads that a run starts: a fixed number, and a number for each processor core.
Measured with 1 to 16 cores."""

_CPUINFO, _DEV = Path("/proc/cpuinfo"), Path("/dev")


class Processor(NamedTuple):
    """Model and features of the processor. All processors of a machine are assumed to be equal."""

    model: str
    """Model name, or the architecture if the model name is unknown."""
    flags: frozenset[str]
    """Names of instruction sets and other features, as in Linux's /proc/cpuinfo. Empty on other
    systems."""


def processor() -> Processor:
    """Return the model and features of this machine's processors."""
    model, flags = platform.processor() or platform.machine(), frozenset[str]()
    try:
        lines = _CPUINFO.read_text(errors="replace").splitlines()
    except OSError:  # The file /proc/cpuinfo exists only on Linux.
        return Processor(model, flags)
    for line in lines:
        name, _, text = (part.strip() for part in line.partition(":"))
        if name == "model name":
            model = text
        elif name in ("flags", "Features"):  # The key is "flags" on x86, and "Features" on Arm.
            return Processor(model, frozenset(text.split()))
    return Processor(model, flags)


def cache_dir() -> Path:
    """Return the cache folder: $CIFAR_JAX_CACHE, or `cifar-jax` in the user's cache folder.

    Without a home folder, the cache folder is a temporary folder.
    """
    if folder := os.environ.get("CIFAR_JAX_CACHE"):
        return home_path(folder, "CIFAR_JAX_CACHE")
    import platformdirs

    # Without a home folder, platformdirs raises RuntimeError, or returns a path with "~".
    with suppress(RuntimeError):
        path = Path(platformdirs.user_cache_dir("cifar-jax", appauthor=False))
        if path.is_absolute():
            return path
    return Path(_temporary_cache().name)


@cache
def _temporary_cache() -> tempfile.TemporaryDirectory[str]:
    """Create a temporary cache folder, which is deleted when this process ends."""
    _print("there is no home folder, so nothing is cached; to cache, set CIFAR_JAX_CACHE")
    return tempfile.TemporaryDirectory(prefix="cifar-jax-")


def set_up() -> None:
    """Prepare this process for training. Call this before JAX uses a device.

    Raises:
      UserError: the limit on open files, memory or threads is too low, or an environment variable
        prevents training.
    """
    keep_memory()
    allow_open_files()
    check_memory_and_threads()
    configure_jax()
    # Hide log messages of orbax and asyncio. Orbax raises an exception for each of its errors.
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def keep_memory() -> None:
    """Configure glibc to keep freed memory for the next training step.

    On the CPU, each training step allocates memory for temporary arrays. By default glibc requests
    new pages for them, and the kernel clears each new page. Clearing pages took a third of the
    training time of the experiment `resnet10-separable`.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_MAX, 0)  # Take large blocks of memory from the heap.
        libc.mallopt(_M_TRIM_THRESHOLD, -1)  # Never return freed memory to the kernel.
        # Let all threads share one heap. A separate heap for a thread is limited to 64 MB.
        libc.mallopt(_M_ARENA_MAX, 1)


def allow_open_files() -> None:
    """Raise this process's limit on open files to 256 if the limit is lower.

    Raises:
      UserError: the system does not allow 256 open files. XLA and orbax would then abort without a
        clear message.
    """
    try:
        import resource
    except ImportError:  # The module `resource` exists only on Unix.
        return
    soft, hard = resource.getrlimit(
        resource.RLIMIT_NOFILE
    )  # A value of -1 means that there is no limit.
    if 0 <= hard < _OPEN_FILES:
        raise UserError(
            f"only {hard} open files are allowed: raise the limit with `ulimit -n {_OPEN_FILES}`"
        )
    if 0 <= soft < _OPEN_FILES:
        resource.setrlimit(resource.RLIMIT_NOFILE, (_OPEN_FILES, hard))


def check_memory_and_threads() -> None:
    """Check the limits on this process's memory and threads.

    Raises:
      UserError: a limit is too low. XLA would then abort without a clear message.
    """
    with suppress(ImportError):  # The module `resource` exists only on Unix.
        import resource

        limit, _ = resource.getrlimit(resource.RLIMIT_AS)
        if 0 <= limit < _ADDRESS_SPACE:
            raise UserError(
                f"only {limit / 1e9:.2g} GB of memory are allowed: raise the limit to at least "
                f"{_ADDRESS_SPACE / 1e9:.0f} GB with `ulimit -v {_ADDRESS_SPACE // 1000}`"
            )
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    needed = _THREADS + _THREADS_PER_CORE * cores
    if (started := _start_threads(needed)) < needed:
        raise UserError(
            f"only {started} threads can be started, and about {needed} are needed: raise the "
            "limit on processes (`ulimit -u`, or --pids-limit of a container), or end other "
            "programs"
        )


def _start_threads(number: int) -> int:
    """Try to start `number` threads, end them, and return how many could be started."""
    threads, end = list[threading.Thread](), threading.Event()
    with suppress(RuntimeError):  # The system raises RuntimeError if it allows no more threads.
        for _ in range(number):
            thread = threading.Thread(target=end.wait, daemon=True)
            thread.start()
            threads.append(thread)
    end.set()
    for thread in threads:
        thread.join()
    return len(threads)


_REFUSED = {
    "jax_disable_jit": ([True], "training is compiled"),
    "jax_enable_x64": ([True], "the networks are float32"),
    "jax_debug_infs": ([True], "the state of a run contains infinity"),
    "jax_numpy_rank_promotion": (["raise"], "the networks broadcast arrays"),
    "jax_transfer_guard": (
        ["disallow", "disallow_explicit"],
        "training moves images and metrics between host and device",
    ),
}
"""Settings of JAX that can prevent training. Each entry has the refused values and the reason."""


def configure_jax() -> None:
    """Configure JAX for this package.

    A warning is printed on standard error if JAX has already started with other settings.

    Raises:
      UserError: an environment variable has a value that JAX or this package cannot work with.
    """
    try:
        import jax
        from jax._src import xla_bridge
    except ValueError as error:  # An environment variable of JAX has an invalid value.
        raise UserError(f"JAX cannot start: {error}. Correct or unset the variable.") from None

    for name, (values, reason) in _REFUSED.items():
        if getattr(jax.config, name, None) in values:
            raise UserError(f"{name.upper()} is set, but {reason}. Unset {name.upper()}.")
    late = xla_bridge.backends_are_initialized() and jax.default_backend() == "cpu"
    if late and jax.config.read("jax_cpu_enable_async_dispatch"):
        _print(
            "JAX was used before cifar_jax, so training on the CPU may be slower; results do not "
            "change. To avoid this, restart Python and train before other JAX calls."
        )
    for name, value in (
        # Run programs in the calling thread, so that a program can reuse freed memory.
        ("jax_cpu_enable_async_dispatch", False),
        # Let random numbers depend only on the seed, and not on environment variables.
        ("jax_default_prng_impl", "threefry2x32"),
        ("jax_threefry_partitionable", True),
        ("jax_random_seed_offset", 0),
    ):
        jax.config.update(name, value)
    # Hide warnings about the compilation cache. If the cache fails, JAX compiles without it.
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache")
    if jax.config.jax_compilation_cache_dir is None:  # pyright: ignore[reportAttributeAccessIssue]
        folder = cache_dir() / f"xla-{_cpu_digest()}"
        jax.config.update("jax_compilation_cache_dir", str(folder))


def _cpu_digest() -> str:
    """Return a short digest of the processor's features, for the name of the compilation cache.

    Each kind of processor has its own cache, because a compiled program may use instructions that
    other processors lack.
    """
    features = " ".join(sorted(processor().flags)) or platform.processor()
    return hashlib.sha256(f"{platform.machine()} {features}".encode()).hexdigest()[:8]


def require(device: str | None = None) -> None:
    """Raise if JAX does not compute on `device`.

    Call this before the first array is created, and after `distributed.initialize`.

    Args:
      device: "cpu", "gpu", "tpu" or None for any device. With None, a hint is printed if JAX uses
        the CPU of a machine that has an accelerator. JAX_PLATFORMS=cpu turns the hint off.

    Raises:
      UserError: JAX does not find the device.
    """
    import jax

    platforms = jax.config.jax_platforms or ""  # pyright: ignore[reportAttributeAccessIssue]
    if device == "cpu":
        jax.config.update("jax_platforms", "cpu")
    try:
        backend = jax.default_backend()
    # JAX with CUDA raises AssertionError on a machine without a GPU.
    except (RuntimeError, AssertionError) as error:
        setting = f" with JAX_PLATFORMS={platforms}" if platforms else ""
        reason = str(error).partition(" (set JAX_PLATFORMS")[0].partition("\n")[0].rstrip(".")
        raise UserError(
            f"JAX finds no device{setting}{f' ({reason})' if reason else ''}. Set "
            "JAX_PLATFORMS=cpu, or install JAX for your device (pip install 'cifar-jax[cuda12]' or "
            "'cifar-jax[tpu]')."
        ) from None
    if device and backend != device:
        hidden = f"JAX_PLATFORMS={platforms} hides other devices: unset it. " if platforms else ""
        raise UserError(
            f"JAX finds no {device.upper()}, only the {backend.upper()}. "
            f"{hidden}{_INSTALL[device]}."
        )
    if device or backend != "cpu" or "cpu" in platforms.split(","):
        return
    if accelerator := find_accelerator():
        _print(
            f"this machine has a {accelerator.upper()}, but JAX sees only the CPU, which is much "
            f"slower. {_INSTALL[accelerator]}, or set JAX_PLATFORMS=cpu to use the CPU without "
            "this message."
        )


_INSTALL = {
    "cpu": "Set JAX_PLATFORMS=cpu",
    "gpu": "Install JAX for NVIDIA GPUs (pip install 'cifar-jax[cuda12]', or make setup "
    "EXTRA=cuda12) and check that nvidia-smi lists the GPU; on Colab select a GPU runtime",
    "tpu": "Install JAX for TPUs (pip install 'cifar-jax[tpu]', or make setup EXTRA=tpu); on Colab "
    "select a TPU runtime",
}


def find_accelerator() -> str | None:
    """Return "gpu" or "tpu" if this machine seems to have such a device, else None.

    This function does not use JAX.
    """
    # CUDA_VISIBLE_DEVICES hides all GPUs if its value is empty or -1.
    if os.environ.get("CUDA_VISIBLE_DEVICES") not in ("", "-1"):
        with suppress(OSError, subprocess.TimeoutExpired):
            command = ["nvidia-smi", "-L"]
            if subprocess.run(command, capture_output=True, timeout=20).stdout.startswith(b"GPU "):
                return "gpu"
    variables = ("TPU_NAME", "COLAB_TPU_ADDR", "TPU_ACCELERATOR_TYPE")
    if any(name in os.environ for name in variables) or any(_DEV.glob("accel[0-9]*")):
        return "tpu"
    return None


@contextmanager
def hidden_stderr() -> Iterator[None]:
    """Discard standard error of this process, including the output of C++ code."""
    sys.stderr.flush()
    saved, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(null)


def _print(text: str) -> None:
    print(f"cifar-jax: {text}", file=sys.stderr, flush=True)
