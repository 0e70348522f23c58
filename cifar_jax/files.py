"""Functions that write files atomically."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


def write_json(path: Path, value: Any) -> None:
    """Write a value to a JSON file, atomically."""
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    # A file name may contain bytes that are not UTF-8. They are escaped in the JSON text.
    write_bytes(path, text.encode(errors="backslashreplace"))


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    """Write a file atomically: `path` always holds the complete old or the complete new content."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with naming(path):
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())  # Otherwise `path` could be empty after a power cut.
            temporary.replace(path)
    except OSError:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Set the file name of every `OSError` that is raised in this context to `path`.

    Without this, an error could name a temporary file.
    """
    try:
        yield
    except OSError as error:
        error.filename, error.filename2 = str(path), None
        raise


def hide(path: Path) -> Path:
    """Rename a folder to `.deleted-NAME` and return the new path.

    Hide a folder before you delete it: readers then never see a partly deleted folder.
    """
    hidden = path.with_name(f".deleted-{path.name}")
    path.rename(hidden)
    return hidden
