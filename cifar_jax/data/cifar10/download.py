"""Fetching the official archive and preparing CIFAR-10 from it."""

import hashlib
import tempfile
from pathlib import Path

from cifar_jax.data.cifar10 import facts, tfds_write
from cifar_jax.data.cifar10.importing import ImportResult, import_path
from cifar_jax.data.progress import progress
from cifar_jax.data.tfds_folder import default_data_dir
from cifar_jax.errors import UserError

_TIMEOUT = 10.0  # seconds without an answer, so that a machine without a network soon says so
_CHUNK = 1 << 18


def prepare(data_dir: Path | None = None) -> ImportResult:
    """Prepare CIFAR-10 from the official python archive, which is downloaded.

    ``data_dir`` is as for `cifar_jax.data.load`. The archive's hash is checked, and it is not kept.
    Raises UserError if CIFAR-10 is there already, and one that names the other ways to data if the
    archive cannot be downloaded.
    """
    import http.client

    data_dir = data_dir or default_data_dir()
    tfds_write.check_target(data_dir)
    name = facts.ARCHIVE_URL.rpartition("/")[2]
    with tempfile.TemporaryDirectory(prefix="cifar-jax-") as scratch:
        archive = Path(scratch) / name
        try:
            digest = _download(facts.ARCHIVE_URL, archive)
        except (OSError, http.client.HTTPException) as error:
            raise _unavailable(data_dir, str(getattr(error, "reason", error))) from error
        if facts.OFFICIAL_ARCHIVES.get(digest) != name:
            raise _unavailable(data_dir, f"what came is not the official archive: SHA-256 {digest}")
        return import_path(archive, data_dir)


def _download(url: str, path: Path) -> str:
    """Write what is at ``url`` to ``path`` and return its SHA-256."""
    import urllib.request

    digest = hashlib.sha256()
    with urllib.request.urlopen(url, timeout=_TIMEOUT) as answer, path.open("wb") as file:
        size = answer.headers.get("Content-Length")
        name = url.rpartition("/")[2]
        with progress(f"Downloading {name}", int(size) if size else None, is_bytes=True) as advance:
            while chunk := answer.read(_CHUNK):
                digest.update(chunk)
                file.write(chunk)
                advance(len(chunk))
    return digest.hexdigest()


def _unavailable(data_dir: Path, why: str) -> UserError:
    return UserError(
        f"CIFAR-10 is not in {data_dir} and could not be downloaded ({why}): "
        "with a network, run `cifar-jax data prepare`; with an archive or an image folder, "
        "`cifar-jax data import PATH`; or train on the embedded digits with "
        "`--set data.dataset=digits`"
    )
