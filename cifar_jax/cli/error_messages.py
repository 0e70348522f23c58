"""Errors that are no fault of the program, in one line: what was wrong, where, and what to do."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

_GOES_ON = "; a run goes on from its last checkpoint"
_ADVICE = {
    errno.ENOSPC: "make room there, or free inodes (df -h, df -i)" + _GOES_ON,
    errno.EDQUOT: "your share of the disk is used up: make room there" + _GOES_ON,
    errno.EFBIG: "files may not be that large here: raise the limit (ulimit -f)",
    errno.EROFS: "choose a place that can be written",
    errno.EACCES: "choose another place, or have yourself let in (ls -ld)",
    errno.EPERM: "choose another place, or have yourself let in (ls -ld)",
    errno.EMFILE: "allow more open files (ulimit -n 1024)",
    errno.ENFILE: "the whole machine has too many files open: end what has them",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ELOOP: "its links lead in a circle: choose another place",
    errno.ENOTDIR: "a file stands where a folder should: choose another place",
    errno.EISDIR: "a folder stands where a file should: choose another place",
    errno.ENOENT: "make it, or choose another place",
    errno.EIO: "the disk or network share fails: see dmesg, and save what you can",
    errno.ENOTCONN: "the network share went away: mount it again, and start again",
    errno.ETIMEDOUT: "the network share does not answer: see to it, and start again",
    errno.ESTALE: "the network share went away: mount it again, and start again",
    errno.ENOMEM: "the machine has too little memory for this: end other programs",
}


def explain(error: Exception) -> str | None:
    """What a person can do about `error`, in one line; None where it is a fault."""
    if isinstance(error, OSError):
        return _system(error)
    if isinstance(error, MemoryError):
        return (
            f"out of memory ({_first_line(error)}): end other programs, or lower "
            "train.eval_batch_size and batch_size"
        )
    if isinstance(error, RuntimeError) and "home directory" in str(error).lower():
        return (
            "no home folder is known, where caches and data are by default: set HOME, or "
            "CIFAR_JAX_CACHE and TFDS_DATA_DIR, to a folder that can be written"
        )
    if _is_of_jax(error) and "RESOURCE_EXHAUSTED" in str(error):
        return (
            f"the device is out of memory ({_first_line(error)}): end what else uses it, lower "
            f"train.eval_batch_size or batch_size, or use more devices{_GOES_ON}"
        )
    return None


def standard_output_fails(error: OSError) -> bool:
    """Whether it was a write to standard output that failed: then another one does."""
    if error.filename is not None:
        return False
    try:
        sys.stdout.write("\n")
        sys.stdout.flush()
    except OSError as again:
        return again.errno == error.errno
    return False


def _system(error: OSError) -> str | None:
    if error.errno not in _ADVICE:
        return None
    reason = os.strerror(error.errno)
    if error.errno == errno.ENOENT and _working_folder_is_gone():
        return "the working folder was deleted: go to another, and start again"
    if "temporary directory" in (reason_given := error.strerror or ""):  # Python's own, of tempfile
        return f"{reason_given}: make room in one of them, or set TMPDIR to a folder that has some"
    where = os.fsdecode(error.filename) if isinstance(error.filename, (str, bytes)) else None
    return ": ".join(filter(None, (where, reason, _ADVICE[error.errno])))


def _working_folder_is_gone() -> bool:
    try:
        Path.cwd()
    except FileNotFoundError:
        return True
    return False


def _is_of_jax(error: Exception) -> bool:
    return "jax" in sys.modules and isinstance(error, sys.modules["jax"].errors.JaxRuntimeError)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
