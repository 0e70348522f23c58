"""Files that appear whole or not at all, and errors that name the file."""

import json
import shutil
from pathlib import Path
from typing import Any

from cifar_jax.errors import UserError
from cifar_jax.files import naming, write_bytes, write_json  # noqa: F401


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
