"""What a process sets up for itself, first of all: importing this imports nothing heavy."""

import os
import platform
import sys

# Have glibc keep freed memory. Its caches of small pieces are off, since the small pieces beside a
# large one, once taken, make it too small for the next of its size, so that memory would grow
# (glibc before 2.38).
TUNABLES = ":".join(
    (
        "glibc.malloc.mmap_max=0",
        "glibc.malloc.trim_threshold=0x7fffffffffff",
        "glibc.malloc.tcache_count=0",
        "glibc.malloc.mxfast=0",
    )
)


def keep_memory() -> None:
    """Begin the process anew, with an allocator that keeps freed memory for the next step.

    On a CPU each call allocates its temporaries anew, which may be hundreds of megabytes. By
    default glibc maps fresh pages for them, and the system clears them one by one: that cost
    `resnet10-separable` a third of its time. What tells glibc otherwise is read when a process
    begins. Where GLIBC_TUNABLES is set already, or the C library is another, nothing happens.
    """
    if sys.executable and "GLIBC_TUNABLES" not in os.environ and platform.libc_ver()[0] == "glibc":
        environment = os.environ | {"GLIBC_TUNABLES": TUNABLES}
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def configure_jax() -> None:
    """Set what JAX decides when it first uses a device or compiles.

    Compiled programs are kept in the user's cache folder, where JAX was not given another. On the
    CPU a call runs in the thread that makes it: the main thread's memory is the only one that glibc
    keeps in large pieces, and the call before has given back its own by then.
    """
    import jax

    from cifar_jax.data.cache import cache_dir

    jax.config.update("jax_cpu_enable_async_dispatch", False)
    if jax.config.jax_compilation_cache_dir is None:  # pyright: ignore[reportAttributeAccessIssue]
        jax.config.update("jax_compilation_cache_dir", str(cache_dir() / "xla"))
