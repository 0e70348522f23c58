"""Read run folders and records."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from cifar_jax.errors import UserError
from cifar_jax.runs.folder import RunFolder
from cifar_jax.runs.records import CARD, read_record, read_records
from cifar_jax.runs.run import RunRecord
from cifar_jax.runs.schemas import ModelCard, Result, read, read_rows, read_sessions

RUNS = Path("runs")
"""Folder that contains all run folders by default."""
REPORTS = ("report.html", "report.md", "report.svg")
"""Files that `cifar-jax report` writes."""
STUDY = "study.json"
"""File that marks the folder of a study, whose subfolders are the trials."""


def read_runs(paths: Sequence[Path] = (), *, trials: bool = True) -> list[RunRecord]:
    """Return the runs in `paths`. Each run is returned once.

    Args:
      paths: run folders, folders that contain run folders at any depth, records (`*.json`), or
        folders of records. The default is `runs`, which may be missing.
      trials: whether to return the trials of a study if its folder is one of the paths. If False, a
        path that contains studies but no runs is not an error.

    Raises:
      UserError: a path contains no run, or a file cannot be read.
    """
    runs: dict[Path, RunRecord] = {}
    for path in paths or ([RUNS] if RUNS.is_dir() else []):
        if not path.exists():
            raise UserError(f"{path} does not exist. Run folders are runs/EXPERIMENT/seedN.")
        is_other = path.name in REPORTS or path.name.endswith(CARD)
        if is_other and len(paths) > 1:
            continue  # A pattern such as `runs/*` or `results/net-*.json` also matches these files.
        if path.is_file() and (is_other or path.suffix != ".json"):
            raise UserError(f"{path} is not a record (*.json). Name run folders or records.")
        in_path = [read_record(path)] if path.is_file() else _read_tree(path, trials)
        if paths and not in_path and (trials or not any(path.rglob(STUDY))):
            raise UserError(
                f"{path} contains no trained run and no record. Name a folder such as runs/ or "
                "results/."
            )
        runs |= {run.path.resolve(): run for run in in_path}
    return list(runs.values())


def _read_tree(path: Path, trials: bool) -> list[RunRecord]:
    runs = [run for folder in run_folders(path, trials=trials) if (run := read_folder(folder))]
    return runs or read_records(path)


def run_folders(path: Path, *, trials: bool = True) -> Iterator[Path]:
    """Yield the run folders in `path` at any depth, or `path` itself if it is a run folder.

    The trials of a study are left out, unless `path` is the folder of the study and `trials` is
    True.
    """
    seen = set()
    for folder, subfolders, files in os.walk(path, followlinks=True):
        place = Path(folder).resolve()
        if place in seen:  # A link leads back to a folder that contains it.
            subfolders.clear()
            continue
        seen.add(place)
        subfolders.sort()
        if STUDY in files and (not trials or Path(folder) != path):
            subfolders.clear()
        if "config.json" in files:
            # A run folder contains many files but no other run, so it is not searched.
            subfolders.clear()
            yield Path(folder)


def read_folder(path: Path) -> RunRecord | None:
    """Return the run in a folder, or None if its weights were imported, not trained.

    Raises:
      UserError: a file of the run cannot be read.
    """
    card_file, result_file = path / "model.json", path / "result.json"
    card = read(card_file, ModelCard) if card_file.exists() else None
    if card and card.imported_from is not None:
        return None
    rows, _ = read_rows(path / "metrics.jsonl")
    if result_file.exists():
        result, outputs = read(result_file, Result), path / "outputs.npz"
        return RunRecord.finished(path, result, rows, outputs if outputs.exists() else None, card)
    identity = RunFolder(path).identity()
    validation = path / "validation.npz"
    return RunRecord(
        path,
        identity.experiment,
        identity.seed,
        identity.settings,
        identity.overrides,
        result=None,
        rows=rows,
        sessions=read_sessions(path / "env.json"),
        data_sha256=card.data.sha256 if card and card.data else None,
        data_official=card.data.official if card and card.data else None,
        card=card,
        validation=validation if validation.exists() else None,
    )
