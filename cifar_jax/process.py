"""What a process sets up for itself, first of all: importing this imports nothing heavy."""

import ctypes
import logging
import platform

# Parameters of glibc's mallopt(3).
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8


def set_up() -> None:
    """All of it, for the verbs that compute. Call it before the first array is made."""
    keep_memory()
    configure_jax()
    # orbax reports every file it touches; what a person needs to know is said in the run's log.
    logging.getLogger("absl").setLevel(logging.ERROR)


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


def configure_jax() -> None:
    """Set what JAX decides when it first uses a device or compiles.

    Compiled programs are kept in the user's cache folder, where JAX was not given another. On the
    CPU a call runs in the thread that makes it: the call before has given back its memory by then.
    """
    import jax

    from cifar_jax.data.cache import cache_dir

    jax.config.update("jax_cpu_enable_async_dispatch", False)
    if jax.config.jax_compilation_cache_dir is None:  # pyright: ignore[reportAttributeAccessIssue]
        jax.config.update("jax_compilation_cache_dir", str(cache_dir() / "xla"))
