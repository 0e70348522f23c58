"""Files that appear whole or not at all, and errors that name the file."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from cifar_jax.errors import UserError


def write_json(path: Path, value: Any) -> None:
    """Write `value` to `path`, which appears whole or not at all."""
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    # What of a path is no UTF-8 becomes \udcXX, which is JSON's own way to write it.
    write_bytes(path, text.encode(errors="backslashreplace"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path`, which appears whole or not at all."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with naming(path):
            with beside.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())  # or the name could outlive a power cut, and this not
            beside.replace(path)
    except OSError:
        with suppress(OSError):
            beside.unlink(missing_ok=True)
        raise


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """While inside, an error of the system names `path`, where it names none: a write that fails
    knows no path."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def read_json(path: Path) -> Any:
    """The value in `path`.

    Raises:
      UserError: the file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"no {path}: is {path.parent} the folder of a run?") from None
    except (ValueError, RecursionError, OSError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None


def hide(path: Path) -> Path:
    """Rename a folder that is about to be deleted, so that none of it is taken for the whole if
    that is not finished; returns where it is."""
    hidden = path.with_name(f".deleted-{path.name.lstrip('.')}")
    if hidden.exists():
        shutil.rmtree(hidden, ignore_errors=True)
    path.rename(hidden)
    return hidden
