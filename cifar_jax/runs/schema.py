"""What a reader cannot do without in the files of a run, and of which type it is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cifar_jax.errors import UserError

Fields = Mapping[str, type | tuple[type, ...]]

EPOCH: Fields = {
    "epoch": int,
    "step": int,
    "train_loss": (int, float),
    "train_accuracy": (int, float),
}
"""Of a line of metrics.jsonl."""
_HALVINGS: Fields = {"halvings": int}
EPOCH_TO_GO_ON_FROM: Fields = {
    **EPOCH,
    "learning_rate": (int, float),
    "images_per_second": (int, float),
    "wall_seconds": (int, float),
}
"""Of one that a run goes on from."""
IMAGES: Fields = {"name": str, "sha256": str, "content": str}
"""Of `data` in model.json."""
START: Fields = {"git_commit": (str, type(None)), "device": dict, "machine": dict}
"""Of an entry of env.json."""
_VERSIONS: Fields = {"versions": dict}
_WHERE: dict[str, Fields] = {
    "device": {"platform": str, "kind": str, "count": int},
    "machine": {
        **{"system": str, "cpu": (str, type(None)), "cores": (int, type(None))},
        "features": list,
    },
}
"""Of `device` and `machine`, where it is told."""
_DATA: Fields = {"sha256": str, "content": (str, type(None)), "official": (bool, type(None))}
"""Of `data` in model.json, where it is told."""
_DIGESTS: Fields = {
    "params_sha256": (str, type(None)),
    "data_sha256": (str, type(None)),
    "data_content": (str, type(None)),
    "data_official": (bool, type(None)),
    **_HALVINGS,
}
RESULT: Fields = {
    "experiment": str,
    "model": str,
    "seed": int,
    "overrides": dict,
    "parameters": int,
    "epochs": int,
    "test_accuracy": (int, float),
    "best_validation_epoch": (int, type(None)),
    "best_validation_test_accuracy": (int, float, type(None)),
    "paper_accuracy": (int, float, type(None)),
    "wall_seconds": (int, float),
    **START,
}
"""Of result.json."""


def checked(value: Any, fields: Fields, path: Path) -> dict[str, Any]:
    """`value`, read from `path`, which has to be an object with `fields`.

    Raises:
      UserError: it is not; the first that is missing or makes no sense is named.
    """
    if not isinstance(value, dict):
        raise UserError(f"{path} is not that of a run: it holds no object")
    for name, kind in fields.items():
        if name not in value:
            raise UserError(f"{path} is incomplete: it has no {name!r}")
        if not isinstance(value[name], kind):
            raise UserError(f"{path} has a {name!r} that makes no sense: {value[name]!r}")
    return value


def _where_told(value: Any, fields: Fields, path: Path) -> dict[str, Any]:
    """`value`, read from `path`, which need not have `fields`, but not of another type."""
    found = checked(value, {}, path)
    return checked(found, {key: kind for key, kind in fields.items() if key in found}, path)


def checked_epoch(value: Any, path: Path) -> dict[str, Any]:
    """`value`, a line of `path`, which has to be an epoch's metrics.

    Raises:
      UserError: it is not.
    """
    return _where_told(checked(value, EPOCH, path), _HALVINGS, path)


def checked_images(value: Any, path: Path) -> dict[str, Any]:
    """`value`, what `path` tells of a run's images, which may be nothing.

    Raises:
      UserError: it makes no sense.
    """
    return _where_told(value, _DATA, path)


def checked_start(value: Any, path: Path) -> dict[str, Any]:
    """`value`, read from `path`, which has to say where a start ran.

    Raises:
      UserError: it does not.
    """
    start = _where_told(checked(value, START, path), _VERSIONS, path)
    for name, fields in _WHERE.items():
        _where_told(start[name], fields, path)
    return start


def checked_result(value: Any, path: Path) -> dict[str, Any]:
    """`value`, read from `path`, which has to say what a run came to.

    Raises:
      UserError: it does not.
    """
    return checked_start(_where_told(checked(value, RESULT, path), _DIGESTS, path), path)


def checked_run(value: Any, settings: str, path: Path) -> dict[str, Any]:
    """`value`, read from `path`, which has to say what a run is: config.json, or a record.

    Args:
      value: what was read.
      settings: the name under which it has the flat settings.
      path: what to name.

    Raises:
      UserError: it does not.
    """
    fields = {"experiment": str, "seed": int, "overrides": dict, settings: dict}
    found = checked(value, fields, path)
    checked(found[settings], {"epochs": int, "model.name": str, "data.dataset": str}, path)
    return found
