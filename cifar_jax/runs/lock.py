"""The lock of a run folder: only one process may train in it."""

import errno
import warnings
from contextlib import suppress
from pathlib import Path

import filelock

from cifar_jax.errors import UserError

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
"""Error numbers of `flock` on file systems without locks."""


def lock(path: Path) -> filelock.AcquireReturnProxy:
    """Lock a run folder, and return a context manager that unlocks it.

    Raises:
      UserError: another process holds the lock, or the file system supports no locks.
    """
    file = path / ".lock"
    try:
        with warnings.catch_warnings():
            # On some file systems, filelock warns and takes the existence of the file as the lock.
            warnings.simplefilter("ignore")
            return filelock.FileLock(file).acquire(timeout=0)
    except filelock.Timeout:
        # Such a file contains the process and the host. It remains if the process is killed.
        holder = file.read_text(errors="replace").split()[:2] if file.exists() else []
        if len(holder) == 2:
            raise UserError(
                f"{path} is in use by process {holder[0]} on {holder[1]}. If this process has "
                f"ended, delete {file}"
            ) from None
        raise UserError(
            f"{path} is in use by another process. Wait until it ends, or stop it."
        ) from None
    except (OSError, NotImplementedError) as error:
        if isinstance(error, OSError) and error.errno not in _NO_LOCKS:
            raise
        with suppress(OSError):
            file.unlink()
            path.rmdir()
        raise UserError(
            f"{path} is on a file system without file locks ({error}). Mount it with locks, or "
            "choose a --workdir on another file system."
        ) from None
