"""Reads what runs left: their folders, finished or not, and records of finished ones."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from cifar_jax import catalog
from cifar_jax.config import Config, flatten
from cifar_jax.errors import UserError
from cifar_jax.runs.folder import Workdir, existing_workdir, read_json

RUNS = Path("runs")
"""Where runs are looked for unless told otherwise."""

# What a table cannot do without, and of which type; None is allowed where it can be.
_RESULT: dict[str, type | tuple[type, ...]] = {
    "experiment": str,
    "model": str,
    "seed": int,
    "overrides": dict,
    "parameters": int,
    "epochs": int,
    "test_accuracy": (int, float),
    "best_validation_test_accuracy": (int, float, type(None)),
    "paper_accuracy": (int, float, type(None)),
    "wall_seconds": (int, float),
    "git_commit": (str, type(None)),
    "device": dict,
    "machine": dict,
}
_CONFIG: dict[str, type | tuple[type, ...]] = {
    "experiment": str,
    "seed": int,
    "overrides": dict,
    "config": dict,
}
_EPOCH: dict[str, type | tuple[type, ...]] = {
    "epoch": int,
    "train_loss": (int, float),
    "train_accuracy": (int, float),
}


@dataclass(frozen=True)
class Run:
    """One run, as its folder or its record tells."""

    path: Path
    experiment: str
    seed: int
    changes: Mapping[str, Any]
    """Settings that differ from the experiment's, by dotted name."""
    epochs: int
    """As many as were asked for."""
    result: Mapping[str, Any] | None
    """What result.json holds, once the run is finished."""
    rows: Sequence[Mapping[str, Any]] = field(default=())
    """Metrics, one row an epoch; none in a record."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Every setting by dotted name; none in a record."""


def read_runs(paths: Sequence[Path] = ()) -> list[Run]:
    """The runs in `paths`: run folders, folders that hold some at any depth, or records (`*.json`).

    Without paths, those under `runs`, which need not exist.

    Raises:
      UserError: a path that holds no run, or a run that cannot be read; it is named.
    """
    runs: dict[Path, Run] = {}
    for path in paths or ([RUNS] if RUNS.is_dir() else []):
        if not path.exists():
            raise UserError(f"no run {path}; runs are under runs/EXPERIMENT/seedN")
        if path.is_file():
            runs[path.resolve()] = read_record(path)
            continue
        folders = list(_run_folders(path))
        if paths and not folders:
            raise UserError(f"no run in {path}: no folder in it has a config.json")
        runs |= {folder.resolve(): _read_folder(folder) for folder in folders}
    return list(runs.values())


def read_records(folder: Path) -> list[Run]:
    """The records `folder/*.json`.

    Raises:
      UserError: no such folder, or a record that cannot be read.
    """
    if not folder.is_dir():
        raise UserError(f"no folder {folder} with the records of runs")
    return [read_record(path) for path in sorted(folder.glob("*.json"))]


def read_record(path: Path) -> Run:
    """The record in `path`: a copy of a finished run's result.json.

    Raises:
      UserError: it cannot be read, or is no result.
    """
    result = _checked(read_json(path), _RESULT, path)
    return Run(
        path, result["experiment"], result["seed"], result["overrides"], result["epochs"], result
    )


def _run_folders(path: Path) -> Iterator[Path]:
    for folder, subfolders, files in os.walk(path):
        subfolders.sort()
        if "config.json" in files:
            subfolders.clear()  # a run's checkpoints hold many files and no other run
            yield Path(folder)


def _read_folder(path: Path) -> Run:
    workdir, identity = existing_workdir(path)
    identity = _checked(identity, _CONFIG, path / "config.json")
    settings = identity["config"]
    if not isinstance(settings.get("epochs"), int):
        raise UserError(f"{path / 'config.json'} is not that of a run: it has no config.epochs")
    result = workdir.result()
    return Run(
        path,
        identity["experiment"],
        identity["seed"],
        _changes(identity["experiment"], settings) or identity["overrides"],
        settings["epochs"],
        None if result is None else _checked(result, _RESULT, path / "result.json"),
        _epochs(workdir),
        settings,
    )


def _epochs(workdir: Workdir) -> list[Mapping[str, Any]]:
    path = workdir.path / "metrics.jsonl"
    try:
        return [_checked(row, _EPOCH, path) for row in workdir.epochs()[0]]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None


def _checked(
    value: Any, needed: Mapping[str, type | tuple[type, ...]], path: Path
) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{path} is not that of a run: it holds no object")
    for name, kind in needed.items():
        if name not in value:
            raise UserError(f"{path} is incomplete: it has no {name!r}")
        if not isinstance(value[name], kind):
            raise UserError(f"{path} has a {name!r} that makes no sense: {value[name]!r}")
    return value


def _changes(experiment: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that differ from those in the experiment's file today, where there is that file.

    The file may have changed since the run: then the run is no longer of this experiment, whatever
    was overridden. A setting that only one of the two knows came or went with a version.
    """
    config = experiments().get(experiment)
    own = flatten(config) if config else {}
    return {k: v for k, v in settings.items() if k in own and own[k] != v}


@cache
def experiments() -> dict[str, Config]:
    """The experiments that come with this package, by name, in the paper's order."""
    return {name: catalog.load(name).config for name in catalog.names()}
