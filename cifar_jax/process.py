"""What a process sets up for itself, first of all: importing this imports nothing heavy."""

import ctypes
import sys

# Parameters of glibc's mallopt, from its malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4
_M_ARENA_MAX = -8


def prepare() -> None:
    """Keep freed memory for the next step, and compiled programs for the next process."""
    keep_memory()
    keep_compiled()


def keep_memory() -> None:
    """Have glibc keep freed memory instead of giving it back to the system.

    On a CPU each step allocates its temporaries anew, which may be hundreds of megabytes. By
    default glibc maps fresh pages for them, and the system clears them one by one: that cost
    `resnet10-separable` a third of its time. Call it before there are threads, which NumPy and JAX
    begin when imported: those may have taken an arena that cannot keep as much.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)  # others than the first cannot hold more than 64 MB
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, -1)  # never


def keep_compiled() -> None:
    """Keep compiled programs in the user's cache folder, where JAX was not given another."""
    import jax

    from cifar_jax.data.cache import cache_dir

    if jax.config.jax_compilation_cache_dir is None:  # pyright: ignore[reportAttributeAccessIssue]
        jax.config.update("jax_compilation_cache_dir", str(cache_dir() / "xla"))
