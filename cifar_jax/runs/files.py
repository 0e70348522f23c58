"""Files that appear whole or not at all."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from cifar_jax.errors import UserError


def write_json(path: Path, value: Any) -> None:
    """Write `value` to `path`, which appears whole or not at all."""
    write_bytes(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path`, which appears whole or not at all."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_bytes(content)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)  # on a full disk it would be left half written


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


def write_array(path: Path, array: np.ndarray) -> None:
    """Write `array` to `path` (`.npy`), which appears whole or not at all."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with beside.open("wb") as file:
            np.save(file, array, allow_pickle=False)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
