"""Reads what runs left: their folders, finished or not, and their records."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cifar_jax.errors import UserError
from cifar_jax.runs import records, schema
from cifar_jax.runs.folder import Workdir, existing_workdir
from cifar_jax.runs.run import Run

RUNS = Path("runs")
"""Where runs are looked for unless told otherwise."""


def read_runs(paths: Sequence[Path] = ()) -> list[Run]:
    """The runs in `paths`: run folders, folders that hold some at any depth, records (`*.json`), or
    a folder of records.

    Without paths, those under `runs`, which need not exist.

    Raises:
      UserError: a path that holds no run, or a run that cannot be read; it is named.
    """
    runs: dict[Path, Run] = {}
    for path in paths or ([RUNS] if RUNS.is_dir() else []):
        if not path.exists():
            raise UserError(f"no run {path}; runs are under runs/EXPERIMENT/seedN")
        if path.is_file():
            runs[path.resolve()] = records.read_record(path)
            continue
        found = [_read_folder(folder) for folder in _run_folders(path) if _was_trained(folder)]
        found = found or records.read_records(path)
        if paths and not found:
            raise UserError(f"no run in {path}: nothing was trained in a folder of it")
        runs |= {run.path.resolve(): run for run in found}
    return list(runs.values())


def read_run(path: Path) -> Run:
    """The one run in the folder `path`.

    Raises:
      UserError: there is none or there are several, or it cannot be read.
    """
    if path.is_file():
        raise UserError(f"{path} is a file, not the folder of a run")
    runs = read_runs([path])
    if len(runs) != 1:
        raise UserError(f"{path} holds {len(runs)} runs: name the folder of one")
    return runs[0]


def _run_folders(path: Path) -> Iterator[Path]:
    for folder, subfolders, files in os.walk(path):
        subfolders.sort()
        if "config.json" in files:
            subfolders.clear()  # a run's checkpoints hold many files and no other run
            yield Path(folder)


def _was_trained(folder: Path) -> bool:
    """And not imported, which looks the same but for the card."""
    return "imported_from" not in (Workdir(folder).card() or {})


def _read_folder(path: Path) -> Run:
    workdir, told = existing_workdir(path)
    told = schema.checked_run(told, "config", path / "config.json")
    result = workdir.result()
    if result is not None:
        result = schema.checked_result(result, path / "result.json")
    card = workdir.card() or {}
    told_of = schema.checked_images(card.get("data", {}), path / "model.json")
    images = result or {f"data_{name}": of for name, of in told_of.items()}
    return Run(
        path,
        told["experiment"],
        told["seed"],
        told["config"],
        told["overrides"],
        result,
        _epochs(workdir),
        workdir.starts(),
        data=images.get("data_sha256"),
        data_official=images.get("data_official"),
    )


def _epochs(workdir: Workdir) -> list[dict[str, Any]]:
    path = workdir.path / "metrics.jsonl"
    try:
        return [schema.checked_epoch(row, path) for row in workdir.epochs()[0]]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
