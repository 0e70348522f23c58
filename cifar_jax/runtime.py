"""What a process sets up for itself, first of all: importing this imports nothing heavy."""

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

from cifar_jax import cpu
from cifar_jax.errors import UserError

# Parameters of glibc's mallopt(3).
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8

_OPEN_FILES = 256
"""What a training may have open at a time: event queues, checkpoints' parts, libraries."""

# Google's PCI devices that are TPUs, v2 to v7, as JAX knows them (jax/_src/hardware_utils.py).
_GOOGLE = "0x1ae0"
_PCI = Path("/sys/bus/pci/devices")
_TPUS = {"0x0027", "0x0056", "0x005e", "0x0062", "0x0063", "0x006f", "0x0076"}


def set_up() -> None:
    """All of it, for the verbs that compute. Call it before the first array is made.

    Raises:
      UserError: the surroundings ask for what cannot be.
    """
    keep_memory()
    allow_open_files()
    configure_jax()
    # orbax reports every file it touches, and an error with its traceback from each thread, before
    # it raises it: what a person needs to know is said in the run's log, and as that error.
    logging.getLogger("absl").setLevel(logging.CRITICAL)


def keep_memory() -> None:
    """Have the C library keep freed memory for the next step, where it is glibc.

    On a CPU each call allocates its temporaries anew, which may be hundreds of megabytes. By
    default glibc maps fresh pages for them, and the system clears them one by one: that cost
    `resnet10-separable` a third of its time.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_MAX, 0)  # nothing in maps of its own, which go with it
        libc.mallopt(_M_TRIM_THRESHOLD, -1)  # nothing back to the system
        # One heap for all threads: another thread's cannot hold 64 MB, and what is larger is mapped
        # anew all the same. From jax 0.11 on XLA's kernels take scratch memory in its own threads.
        libc.mallopt(_M_ARENA_MAX, 1)


def allow_open_files() -> None:
    """Raise the limit of open files as far as a process may, where it is low.

    Raises:
      UserError: that is not far enough. XLA and orbax would abort without a word that helps.
    """
    try:
        import resource
    except ImportError:  # not Unix
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    if soft == unlimited or soft >= _OPEN_FILES:
        return
    if hard != unlimited and hard < _OPEN_FILES:
        raise UserError(
            f"only {hard} files may be open at a time here: allow {_OPEN_FILES} (ulimit -n)"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (_OPEN_FILES, hard))


def configure_jax() -> None:
    """Set what JAX decides when it first uses a device or compiles.

    Compiled programs are kept in the user's cache folder, where JAX was not given another. On the
    CPU a call runs in the thread that makes it: the call before has given back its memory by then.

    Raises:
      UserError: JAX's own settings have a value that it does not know, or one that trainings
        cannot follow.
    """
    try:
        import jax
    except ValueError as error:  # "invalid truth value 'x' for environment 'JAX_…'"
        raise UserError(f"JAX cannot start ({error}): correct the variable or unset it") from None

    from cifar_jax.data.cache import cache_dir

    for name, why in (
        ("jax_disable_jit", "every program here is compiled before it runs"),
        ("jax_enable_x64", "networks here are float32 and indices int32"),
    ):
        if getattr(jax.config, name):
            raise UserError(f"{name.upper()} is set, but {why}: unset it")
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    # Where it cannot be written, programs are compiled anew; of the data's cache in the same place
    # a person is told.
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache")
    if jax.config.jax_compilation_cache_dir is None:  # pyright: ignore[reportAttributeAccessIssue]
        folder = cache_dir() / f"xla-{cpu_features()}"
        jax.config.update("jax_compilation_cache_dir", str(folder))


def cpu_features() -> str:
    """A short name for what this machine's processors can do: the same where it is the same.

    Programs that XLA compiled for a CPU may use instructions that another of the same name lacks.
    """
    features = " ".join(sorted(cpu.processor().flags)) or platform.processor()
    return hashlib.sha256(f"{platform.machine()} {features}".encode()).hexdigest()[:8]


def require(device: str | None = None) -> None:
    """See that JAX computes on what was asked for, and never on the CPU in silence.

    Call it before the first array is made, and after `distributed.initialize_distributed`.

    Args:
      device: "cpu", "gpu" or "tpu"; None takes what JAX finds, and says so on standard error where
        that is the CPU of a machine with an accelerator, unless JAX_PLATFORMS names the CPU.

    Raises:
      UserError: there is no such device, or JAX_PLATFORMS asks for what is not there.
    """
    import jax

    asked = jax.config.jax_platforms or ""  # pyright: ignore[reportAttributeAccessIssue]
    if device == "cpu":
        jax.config.update("jax_platforms", "cpu")
    try:
        found = jax.default_backend()
    except (RuntimeError, AssertionError) as error:  # the latter: CUDA, where there is no GPU
        what = f"JAX_PLATFORMS={asked}" if asked else "JAX"
        why = str(error).partition(" (set JAX_PLATFORMS")[0].partition("\n")[0]
        why = f" ({why})" if why else ""
        raise UserError(
            f"{what} finds no device{why}: {_advice(asked)}, or set JAX_PLATFORMS=cpu"
        ) from None
    if device and found != device:
        hidden = f"JAX_PLATFORMS={asked} hides any other: unset it, or" if asked else "to have one,"
        raise UserError(
            f"there is no {device}, JAX sees only the {found}: {hidden} {_advice(device)}"
        )
    if device is None and found == "cpu" and "cpu" not in asked.split(",") and (has := unused()):
        kind, name = has
        print(
            f"cifar-jax: this machine has {name}, but JAX sees only the CPU, which is much slower: "
            f"{_advice(kind)}; JAX_PLATFORMS=cpu says that the CPU is meant",
            file=sys.stderr,
            flush=True,
        )


def unused() -> tuple[str, str] | None:
    """An accelerator of this machine: "gpu" or "tpu", and words for it; None where none is known.

    Meant for where JAX found none. A GPU that CUDA_VISIBLE_DEVICES hides does not count.
    """
    if os.environ.get("CUDA_VISIBLE_DEVICES") not in ("", "-1") and (name := _nvidia()):
        return "gpu", name
    if _tpu():
        return "tpu", "a TPU"
    return None


def _nvidia() -> str | None:
    if command := shutil.which("nvidia-smi"):
        try:  # a driver without a GPU, as on a login node, is none: ask
            done = subprocess.run([command, "-L"], capture_output=True, text=True, timeout=20)
        except (OSError, subprocess.TimeoutExpired):
            return "an NVIDIA driver"
        # "GPU 0: Tesla T4 (UUID: GPU-…)"
        first = done.stdout.partition("\n")[0].partition(": ")[2].partition(" (UUID")[0]
        return f"an NVIDIA GPU ({first})" if done.returncode == 0 and first else None
    return "an NVIDIA GPU" if _any("/proc/driver/nvidia/gpus", "*") else None


def _tpu() -> bool:
    if any(name in os.environ for name in ("TPU_NAME", "COLAB_TPU_ADDR", "TPU_ACCELERATOR_TYPE")):
        return True
    if _any("/dev", "accel[0-9]*"):
        return True
    for vendor in _PCI.glob("*/vendor"):  # newer ones are /dev/vfio/N, as is much else
        try:
            product = vendor.with_name("device").read_text().strip()
            if vendor.read_text().strip() == _GOOGLE and product in _TPUS:
                return True
        except OSError:
            continue
    return False


def _any(folder: str, pattern: str) -> bool:
    return any(Path(folder).glob(pattern))


def _advice(device: str) -> str:
    """How to have this kind of device."""
    if "tpu" in device:
        return (
            "install the extra tpu (pip install 'cifar-jax[tpu]', or make setup EXTRA=tpu); "
            "on Colab choose a TPU as the runtime's type"
        )
    if any(name in device for name in ("gpu", "cuda")):
        return (
            "install the extra cuda12 (pip install 'cifar-jax[cuda12]', or make setup "
            "EXTRA=cuda12) and see that nvidia-smi lists the GPU; on Colab choose one as the "
            "runtime's type"
        )
    return "unset it"
