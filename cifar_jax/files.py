"""Functions that check paths and write files atomically."""

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from cifar_jax.errors import UserError


def local_path(path: str | Path, source: str = "") -> Path:
    """Return the path that a user gave as a `Path`, and refuse URLs.

    Without this check, `gs://bucket/run` would create a local folder with the name `gs:`.

    Args:
      path: the path.
      source: name of the variable or setting that holds the path, for the error message.

    Raises:
      UserError: the path is a URL.
    """
    text = str(path)
    # `gs:/bucket` is a URL too, because `Path` merges slashes. `C:/` is a Windows drive.
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", text):
        url = text if "://" in text else text.replace(":/", "://", 1)
        advice = "Copy the files to this machine or mount the bucket, and give the local path."
        if url.lower().startswith("file://"):
            advice = "Leave out file://."
        raise UserError(
            f"{f'{source}: ' if source else ''}{url} is a URL, and only local paths are accepted. "
            f"{advice}"
        )
    return Path(path)


def home_path(path: str, variable: str) -> Path:
    """Return a path, with `~` replaced by the home folder.

    Args:
      path: the path.
      variable: name of the environment variable that holds the path, for the error message.

    Raises:
      UserError: the path is a URL, or the user has no home folder.
    """
    try:
        return local_path(path, variable).expanduser()
    except RuntimeError:
        raise UserError(
            f"{path} needs a home folder, and there is none: set {variable} to another folder"
        ) from None


def expand_home(path: str | Path) -> Path:
    """Replace `~` in a path by the home folder. If there is no user NAME, `~NAME` is kept."""
    return Path(os.path.expanduser(path))  # noqa: PTH111 - `Path.expanduser` raises an exception.


def write_json(path: Path, value: Any) -> None:
    """Write a value to a JSON file, atomically."""
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    # Escape bytes that are not valid UTF-8. File names in `value` may contain such bytes.
    write_bytes(path, text.encode(errors="backslashreplace"))


def write_arrays(path: Path, arrays: Mapping[str, Any], *, compress: bool = False) -> None:
    """Write arrays by name to an `.npz` file, atomically."""
    import numpy as np  # NumPy is slow to import, and most commands write no arrays.

    save = np.savez_compressed if compress else np.savez
    write_file(path, lambda file: save(file, **arrays))


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    """Write a file atomically: `path` always holds the complete old or the complete new content."""
    write_file(path, lambda file: file.write(content))


def write_file(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a file atomically, as `write_bytes` does. `write` receives the open file."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with naming(path):
            with temporary.open("wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())  # Without `fsync`, a power cut could empty the file.
            temporary.replace(path)
    except OSError:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Make every `OSError` in this context name `path` as its file.

    Otherwise the error could name a temporary file.
    """
    try:
        yield
    except OSError as error:
        error.filename, error.filename2 = str(path), None
        raise


def hide(path: Path) -> Path:
    """Rename a folder to `.deleted-NAME` and return the new path.

    Hide a folder before you delete it. Other programs then never see a partly deleted folder.
    """
    hidden = path.with_name(f".deleted-{path.name}")
    path.rename(hidden)
    return hidden
