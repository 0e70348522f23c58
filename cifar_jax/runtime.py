"""Set-up of the process: processor, folders, memory, open files, JAX settings and device.

Importing this module does not import JAX.
"""

import ctypes
import hashlib
import logging
import os
import platform
import subprocess
import sys
import warnings
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from cifar_jax.errors import UserError

# Parameters of glibc's mallopt(3).
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8

_OPEN_FILES = 256
"""Files that a run may have open at the same time."""

_CPUINFO, _DEV = Path("/proc/cpuinfo"), Path("/dev")


class Processor(NamedTuple):
    """A processor of this machine. All of them are assumed to be alike."""

    model: str
    """Name, or the architecture if the name is unknown."""
    flags: frozenset[str]
    """Instruction sets and features, as Linux names them. Empty on other systems."""


def processor() -> Processor:
    """Return the first processor that the system lists."""
    model, flags = platform.processor() or platform.machine(), frozenset[str]()
    try:
        lines = _CPUINFO.read_text(errors="replace").splitlines()
    except OSError:  # The system is not Linux.
        return Processor(model, flags)
    for line in lines:
        name, _, text = (part.strip() for part in line.partition(":"))
        if name == "model name":
            model = text
        elif name in ("flags", "Features"):  # The first is the name on x86, the second on Arm.
            return Processor(model, frozenset(text.split()))
    return Processor(model, flags)


def cache_dir() -> Path:
    """Return $CIFAR_JAX_CACHE, or `cifar-jax` in the user's cache folder."""
    if folder := os.environ.get("CIFAR_JAX_CACHE"):
        return Path(folder).expanduser()
    import platformdirs

    return Path(platformdirs.user_cache_dir("cifar-jax", appauthor=False))


def set_up() -> None:
    """Prepare this process for computing. Call this before JAX uses a device.

    Raises:
      UserError: a limit or an environment variable prevents training.
    """
    keep_memory()
    allow_open_files()
    configure_jax()
    # Errors of orbax reach the user as exceptions.
    logging.getLogger("absl").setLevel(logging.CRITICAL)


def keep_memory() -> None:
    """Have glibc keep freed memory for the next step.

    On the CPU each call allocates its temporaries anew. By default glibc maps fresh pages for them,
    which the kernel must clear: that took a third of the time of `resnet10-separable`.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_MAX, 0)  # Do not map large blocks separately.
        libc.mallopt(_M_TRIM_THRESHOLD, -1)  # Never return memory to the kernel.
        # One heap for all threads: a thread's own heap could not hold blocks above 64 MB.
        libc.mallopt(_M_ARENA_MAX, 1)


def allow_open_files() -> None:
    """Raise this process's limit of open files to 256 if it is lower.

    Raises:
      UserError: the system does not allow it. XLA and orbax would abort without a clear message.
    """
    try:
        import resource
    except ImportError:  # The system is not Unix.
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)  # An unlimited number is -1 or large.
    if 0 <= hard < _OPEN_FILES:
        raise UserError(f"only {hard} open files are allowed. Allow {_OPEN_FILES} (ulimit -n).")
    if 0 <= soft < _OPEN_FILES:
        resource.setrlimit(resource.RLIMIT_NOFILE, (_OPEN_FILES, hard))


def configure_jax() -> None:
    """Apply the JAX settings of this package, and say on standard error if it is too late for one.

    Raises:
      UserError: an environment variable has a value that JAX or this package cannot work with.
    """
    try:
        import jax
        from jax._src import xla_bridge
    except ValueError as error:  # JAX raises this for an invalid environment variable.
        raise UserError(f"JAX cannot start: {error}. Correct or unset the variable.") from None

    for name, reason in (
        ("jax_disable_jit", "training is compiled"),
        ("jax_enable_x64", "the networks are float32"),
    ):
        if getattr(jax.config, name):
            raise UserError(f"{name.upper()} is set, but {reason}. Unset {name.upper()}.")
    late = xla_bridge.backends_are_initialized() and jax.default_backend() == "cpu"
    if late and jax.config.read("jax_cpu_enable_async_dispatch"):
        _print(
            "JAX was used before cifar_jax, so training on the CPU may be slower; results do not "
            "change. To avoid this, restart Python and train before other JAX calls."
        )
    for name, value in (
        # Programs run in the calling thread, so the memory of the previous one is free.
        ("jax_cpu_enable_async_dispatch", False),
        # The same seed gives the same numbers, whatever the environment variables say.
        ("jax_default_prng_impl", "threefry2x32"),
        ("jax_threefry_partitionable", True),
        ("jax_random_seed_offset", 0),
    ):
        jax.config.update(name, value)
    # If the cache cannot be used, programs are compiled again.
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache")
    if jax.config.jax_compilation_cache_dir is None:  # pyright: ignore[reportAttributeAccessIssue]
        folder = cache_dir() / f"xla-{_cpu_digest()}"
        jax.config.update("jax_compilation_cache_dir", str(folder))


def _cpu_digest() -> str:
    """Return a short digest of the processor's features.

    Compiled programs are cached by it: they may use instructions that other processors lack.
    """
    features = " ".join(sorted(processor().flags)) or platform.processor()
    return hashlib.sha256(f"{platform.machine()} {features}".encode()).hexdigest()[:8]


def require(device: str | None = None) -> None:
    """Raise if JAX does not compute on `device`.

    Call this before the first array is created, and after `distributed.initialize`.

    Args:
      device: "cpu", "gpu" or "tpu". None accepts what JAX finds, with a hint on standard error if
        that is the CPU of a machine that has an accelerator. JAX_PLATFORMS=cpu silences the hint.

    Raises:
      UserError: JAX does not find the device.
    """
    import jax

    platforms = jax.config.jax_platforms or ""  # pyright: ignore[reportAttributeAccessIssue]
    if device == "cpu":
        jax.config.update("jax_platforms", "cpu")
    try:
        backend = jax.default_backend()
    except (RuntimeError, AssertionError) as error:  # CUDA without a GPU raises the latter.
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
    """Return "gpu" or "tpu" if this machine seems to have one, else None. Does not use JAX."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") not in ("", "-1"):  # These hide all GPUs.
        with suppress(OSError, subprocess.TimeoutExpired):
            command = ["nvidia-smi", "-L"]
            if subprocess.run(command, capture_output=True, timeout=20).stdout.startswith(b"GPU "):
                return "gpu"
    variables = ("TPU_NAME", "COLAB_TPU_ADDR", "TPU_ACCELERATOR_TYPE")
    if any(name in os.environ for name in variables) or any(_DEV.glob("accel[0-9]*")):
        return "tpu"
    return None


def _print(text: str) -> None:
    print(f"cifar-jax: {text}", file=sys.stderr, flush=True)
