"""Lock the folder of a run or study, so that only one process writes to it."""

import errno
import warnings
from contextlib import suppress
from pathlib import Path

import filelock

from cifar_jax.errors import UserError

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
"""Error numbers of `flock` on file systems without locks."""


def lock(path: Path, timeout: float = 0) -> filelock.AcquireReturnProxy:
    """Lock a folder, and return a context manager that unlocks it.

    Args:
      path: the folder.
      timeout: seconds to wait for another process.

    Raises:
      UserError: another process holds the lock, or the file system supports no locks.
    """
    file = path / ".lock"
    handle = filelock.FileLock(file)
    try:
        with warnings.catch_warnings():
            # On a file system without locks, filelock warns and uses the existence of the file as
            # the lock.
            warnings.simplefilter("ignore")
            return handle.acquire(timeout=timeout)
    except filelock.Timeout:
        advice = "Wait until that process ends, or stop it."
        holder = "another process"
        if isinstance(handle, filelock.SoftFileLock):
            # The lock file names the process and the host. A killed process does not delete it.
            words = file.read_text(errors="replace").split() if file.exists() else []
            holder = f"process {words[0]} on {words[1]}" if words[1:] else holder
            advice = f"Wait until that process ends. If it was killed, delete {file}."
        raise UserError(f"{path} is in use by {holder}. {advice}") from None
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


def is_locked(path: Path) -> bool:
    """Return whether a process trains in a run folder.

    The result is False if the lock file cannot be opened, for example in a read-only folder.
    """
    file = path / ".lock"
    if not file.exists():
        return False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # The warning is explained in `lock`.
            filelock.FileLock(file).acquire(timeout=0).lock.release()
            return False
    except filelock.Timeout:
        return True
    except (OSError, NotImplementedError):
        return False
