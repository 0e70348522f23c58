"""Fetching the official archive and preparing CIFAR-10 from it.

A download that stalls or is cut is taken up again where it stopped, if the server can do that.
"""

import hashlib
import tempfile
import time
from pathlib import Path
from typing import Any, BinaryIO

from cifar_jax.data.cifar10 import facts, tfds_write
from cifar_jax.data.cifar10.importing import ImportResult, import_path
from cifar_jax.data.progress import notice, progress
from cifar_jax.data.tfds_folder import default_data_dir
from cifar_jax.errors import UserError

_TIMEOUT = 10.0  # seconds without an answer, so that a machine without a network soon says so
_PAUSES = (1.0, 2.0, 4.0, 8.0)  # seconds before each new try, while nothing more comes
_MAX_TRIES = 50
_CHUNK = 1 << 18
_PASSING = {408, 416, 429, *range(500, 600)}  # HTTP errors that another try may not meet
_MAX_BYTES = 500_000_000  # the archive has 170 MB


def prepare(data_dir: Path | None = None) -> ImportResult:
    """Prepare CIFAR-10 from the official python archive, which is downloaded.

    ``data_dir`` is as for `cifar_jax.data.load`. The archive's hash is checked, and it is not kept.
    Raises UserError if CIFAR-10 is there already, and one that names the other ways to data if the
    archive cannot be downloaded.
    """
    data_dir = data_dir or default_data_dir()
    tfds_write.check_target(data_dir)
    name = facts.ARCHIVE_URL.rpartition("/")[2]
    with tempfile.TemporaryDirectory(prefix="cifar-jax-") as scratch:
        archive = Path(scratch) / name
        try:
            with archive.open("w+b") as file:
                _download(facts.ARCHIVE_URL, file)
                file.seek(0)
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except _Failed as error:
            raise _unavailable(data_dir, str(error)) from error
        except OSError as error:
            raise UserError(
                f"{archive} cannot be written: {error.strerror or error}; "
                "set TMPDIR to a folder with room for 170 MB"
            ) from error
        if facts.OFFICIAL_ARCHIVES.get(digest) != name:
            raise _unavailable(data_dir, f"what came is not the official archive: SHA-256 {digest}")
        return import_path(archive, data_dir)


class _Failed(Exception):
    """Why a download came to nothing; `again` says that another try may help."""

    def __init__(self, why: str, again: bool = False) -> None:
        super().__init__(why)
        self.again = again


def _download(url: str, file: BinaryIO) -> None:
    """Write what is at ``url`` to ``file``. Raises _Failed, and OSError where it cannot write."""
    name = url.rpartition("/")[2]
    pauses = iter(_PAUSES)
    for _ in range(_MAX_TRIES):
        before = file.tell()
        try:
            return _fetch(url, name, file)
        except _Failed as error:
            came = file.tell()
            if came > before:
                pauses = iter(_PAUSES)
            pause = next(pauses, None)
            if pause is None or not error.again:
                raise
            notice(f"{name}: {error} after {came / 1e6:.1f} MB; trying again in {pause:g} s")
            time.sleep(pause)
    raise _Failed(f"it was cut {_MAX_TRIES} times")


def _fetch(url: str, name: str, file: BinaryIO) -> None:
    """Write the rest from where ``file`` stands, or all of it if the server sends no rests."""
    import http.client
    import urllib.error
    import urllib.request

    at = file.tell()
    request = urllib.request.Request(url, headers={"Range": f"bytes={at}-"} if at else {})
    try:
        answer = urllib.request.urlopen(request, timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            _rewind(file)
        raise _Failed(
            f"the server says {error.code} {error.reason}", error.code in _PASSING
        ) from error
    except (OSError, http.client.HTTPException) as error:
        # A machine without a network fails in other ways, and soon.
        cause = getattr(error, "reason", error)
        passing = isinstance(cause, TimeoutError | ConnectionResetError | http.client.HTTPException)
        raise _Failed(_why(cause), again=passing or at > 0) from error
    with answer:
        if at and answer.status != http.client.PARTIAL_CONTENT:
            at = _rewind(file)
        rest = answer.headers.get("Content-Length")
        size = at + int(rest) if rest and rest.isdecimal() else None
        with progress(f"Downloading {name}", size, is_bytes=True) as advance:
            advance(at)
            while chunk := _read(answer):
                file.write(chunk)
                advance(len(chunk))
                if file.tell() > _MAX_BYTES:
                    raise _Failed(f"it is larger than {_MAX_BYTES / 1e6:.0f} MB")
    if size and file.tell() < size:
        raise _Failed("the connection was cut", again=True)


def _read(answer: Any) -> bytes:
    import http.client

    try:
        return answer.read1(_CHUNK)
    except (OSError, http.client.HTTPException) as error:
        raise _Failed(_why(error), again=True) from error


def _rewind(file: BinaryIO) -> int:
    file.seek(0)
    file.truncate()
    return 0


def _why(error: object) -> str:
    if isinstance(error, TimeoutError):
        return "the server stalled (timed out)"
    return str(error) or type(error).__name__


def _unavailable(data_dir: Path, why: str) -> UserError:
    return UserError(
        f"CIFAR-10 is not in {data_dir} and could not be downloaded ({why}): "
        "with a network, run `cifar-jax data prepare`; with an archive or an image folder, "
        "`cifar-jax data import PATH`; or train on the embedded digits with "
        "`--set data.dataset=digits`"
    )
