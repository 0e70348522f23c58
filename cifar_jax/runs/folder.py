"""A run's folder: what it was asked, where it ran, how it went, and what came out.

    config.json     experiment, seed, every setting by dotted name, and which were overridden
    env.json        versions, device, git commit, command line; one object a start
    log.txt         the lines of the training, in the paper's form
    metrics.jsonl   one object an epoch
    tensorboard/    the same for TensorBoard
    checkpoints/    orbax
    result.json     written once, when the run is finished

JSON files appear whole or not at all. No JAX is imported here.
"""

import json
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import filelock

from cifar_jax.config import differences
from cifar_jax.errors import UserError
from cifar_jax.runs.environment import git_commit, machine, versions
from cifar_jax.runs.files import read_json, write_json

_OWN_FILES = ("env.json", "log.txt", "metrics.jsonl", "result.json")
_OWN_FOLDERS = ("tensorboard", "checkpoints")


class Workdir:
    """The folder of one run. Make one with `open_workdir`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def checkpoints(self) -> Path:
        """Where orbax keeps the run's checkpoints."""
        return self.path / "checkpoints"

    @property
    def tensorboard(self) -> Path:
        """Where TensorBoard finds the run's events."""
        return self.path / "tensorboard"

    @property
    def log(self) -> Path:
        """The lines of the training."""
        return self.path / "log.txt"

    def result(self) -> dict[str, Any] | None:
        """What came out, once the run is finished."""
        path = self.path / "result.json"
        return read_json(path) if path.exists() else None

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Finish the run."""
        write_json(self.path / "result.json", result)

    def epochs(self) -> list[dict[str, Any]]:
        """Metrics of the epochs so far; a last line that a crash cut short is left out."""
        rows = []
        path = self.path / "metrics.jsonl"
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
            try:
                rows.append(json.loads(line))
            except ValueError:
                break
        return rows

    def append_epoch(self, row: Mapping[str, Any]) -> None:
        """Add the metrics of an epoch."""
        with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def rewind(self, step: int) -> list[dict[str, Any]]:
        """Drop the epochs after `step`, which a resumed run is about to repeat; keep the rest."""
        rows = [row for row in self.epochs() if row["step"] <= step]
        beside = self.path / ".metrics.jsonl"
        beside.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        beside.replace(self.path / "metrics.jsonl")
        return rows

    def record_start(self, device: Mapping[str, Any]) -> dict[str, Any]:
        """Add where and when this start runs to env.json; returns what was added."""
        path = self.path / "env.json"
        starts = read_json(path) if path.exists() else []
        start = {
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": sys.argv,
            "git_commit": git_commit(),
            "versions": versions(),
            "device": dict(device),
            "machine": machine(),
        }
        write_json(path, [*starts, start])
        return start


@contextmanager
def open_workdir(path: Path, identity: Mapping[str, Any], *, fresh: bool) -> Iterator[Workdir]:
    """The run's folder, made or found, and locked for as long as the context lasts.

    Args:
      path: the folder.
      identity: what config.json holds: `experiment`, `seed`, `overrides` and `config`, the settings
        by dotted name. A folder that holds another is refused.
      fresh: delete the run that is in the folder first. Other files in it stay.

    Raises:
      UserError: another process is at work in the folder; it holds another config, or files that
        are not a run's; it cannot be made or written to.
    """
    known = path / "config.json"
    lock = filelock.FileLock(path / ".lock")
    try:
        if path.exists() and not path.is_dir():
            raise UserError(f"{path} is not a folder")
        visible = [p for p in path.iterdir() if not p.name.startswith(".")] if path.is_dir() else []
        if visible and not known.exists():
            raise UserError(f"{path} holds other files and no run: choose another --workdir")
        if known.exists() and not fresh:
            _check_identity(path, identity)
        path.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise UserError(f"{path} is in use by another process; wait for it or stop it") from None
    except OSError as error:
        raise UserError(f"{path} cannot be used: {error.strerror or error}") from None
    try:
        if fresh:
            for name in _OWN_FILES:
                (path / name).unlink(missing_ok=True)
            for name in _OWN_FOLDERS:
                shutil.rmtree(path / name, ignore_errors=True)
        # The last to be replaced: a folder with files and no config.json would be taken for
        # somebody else's, if this were killed on the way.
        if fresh or not known.exists():
            write_json(known, identity)
        yield Workdir(path)
    finally:
        lock.release()


def finished_result(path: Path, identity: Mapping[str, Any]) -> dict[str, Any] | None:
    """The result of the run in `path`, if there is one and it is finished.

    Raises:
      UserError: the folder holds a run of another config.
    """
    if not (path / "config.json").exists():
        return None
    _check_identity(path, identity)
    return Workdir(path).result()


def existing_workdir(path: Path) -> tuple[Workdir, dict[str, Any]]:
    """The folder of a run that was made before, for reading, and its config.json.

    Raises:
      UserError: it is not a run's folder.
    """
    if not path.is_dir():
        raise UserError(f"no folder {path}; runs are under runs/EXPERIMENT/seedN")
    return Workdir(path), _read_identity(path)


def _read_identity(path: Path) -> dict[str, Any]:
    identity = read_json(path / "config.json")
    if not (
        isinstance(identity, dict)
        and {"experiment", "seed"} <= identity.keys()
        and isinstance(identity.get("config"), dict)
    ):
        raise UserError(f"{path / 'config.json'} is damaged, or not a run's")
    return identity


def _check_identity(path: Path, wanted: Mapping[str, Any]) -> None:
    def settings(identity: Mapping[str, Any]) -> dict[str, Any]:
        return {key: identity[key] for key in ("experiment", "seed")} | identity["config"]

    differing = differences(settings(_read_identity(path)), settings(wanted))
    if differing:
        listing = ", ".join(f"{k}: {a!r} there, {b!r} here" for k, (a, b) in differing.items())
        raise UserError(
            f"{path} holds a run of another config ({listing}): "
            "choose another --workdir, or --fresh"
        )
