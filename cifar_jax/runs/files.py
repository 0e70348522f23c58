"""Files that appear whole or not at all."""

import json
import os
from contextlib import suppress
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
        beside.write_bytes(content)
        beside.replace(path)
    except OSError as error:
        with suppress(OSError):
            beside.unlink(missing_ok=True)
        error.filename = error.filename or str(path)  # which a write that fails does not know
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
    except (ValueError, OSError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
