"""Atomic writes."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON, atomically."""
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    # Bytes of a file name that are not UTF-8 are lone surrogates in Python; JSON can escape them.
    write_bytes(path, text.encode(errors="backslashreplace"))


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    """Write a file atomically: `path` holds either its old content or all of the new."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with naming(path):
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())  # A power cut must not leave the new name on an empty file.
            temporary.replace(path)
    except OSError:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let each `OSError` that is raised inside name `path`, also if it names a temporary file."""
    try:
        yield
    except OSError as error:
        error.filename, error.filename2 = str(path), None
        raise


def hide(path: Path) -> Path:
    """Rename a folder to `.deleted-NAME` and return the new path.

    A folder is hidden before it is deleted, so that no reader ever sees half of it.
    """
    hidden = path.with_name(f".deleted-{path.name}")
    path.rename(hidden)
    return hidden
