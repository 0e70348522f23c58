"""The folder of one run. docs/run-folder.md describes its files. Imports no JAX."""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import filelock

from cifar_jax import config as configs
from cifar_jax.errors import UserError
from cifar_jax.files import hide, write_bytes, write_json
from cifar_jax.runs import schemas
from cifar_jax.runs.schemas import MetricsRow, ModelCard, Result, RunIdentity, Session

if TYPE_CHECKING:
    import numpy as np


class RunFolder:
    """The files of one run.

    Training opens its folder with `open_run_folder`, readers with `existing_run_folder`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.tensorboard = path / "tensorboard"
        self.log = path / "log.txt"
        self.code = path / "code.py"
        """Copy of the experiment file, if that defines custom parts."""
        self.outputs = path / "outputs.npz"
        """Logits and labels of a finished run."""
        self._config = path / "config.json"
        self._card = path / "model.json"
        self._sessions = path / "env.json"
        self._metrics = path / "metrics.jsonl"
        self._result = path / "result.json"

    def identity(self) -> RunIdentity:
        """Return what the run is."""
        return schemas.read(self._config, RunIdentity)

    def result(self) -> Result | None:
        """Return the result, or None if the run is not finished."""
        return schemas.read(self._result, Result) if self._result.exists() else None

    def card(self) -> ModelCard | None:
        """Return the model card, or None if the run has not started yet."""
        return schemas.read(self._card, ModelCard) if self._card.exists() else None

    def sessions(self) -> list[Session]:
        """Return the sessions of the run, oldest first."""
        return schemas.read_sessions(self._sessions)

    def rows(self) -> list[MetricsRow]:
        """Return the metrics of the epochs so far. Lines that cannot be read are skipped."""
        return schemas.read_rows(self._metrics)[0]

    def append_row(self, row: MetricsRow) -> None:
        """Add the metrics of an epoch."""
        text = self._metrics.read_bytes() if self._metrics.exists() else b""
        write_bytes(self._metrics, text + _lines([row]))

    def rewind(self, epoch: int) -> list[MetricsRow]:
        """Delete the metrics of all epochs after `epoch`; return those that remain."""
        rows = [row for row in self.rows() if row.epoch <= epoch]
        write_bytes(self._metrics, _lines(rows))
        return rows

    def write_card(self, card: ModelCard) -> None:
        """Write the model card."""
        write_json(self._card, schemas.dump(card))

    def write_code(self, source: bytes) -> None:
        """Write a copy of the experiment file."""
        write_bytes(self.code, source)

    def add_session(self, session: Session) -> None:
        """Add a session."""
        sessions = [*self.sessions(), session]
        write_json(self._sessions, [schemas.dump(entry) for entry in sessions])

    def write_result(self, result: Result, outputs: Mapping[str, np.ndarray]) -> None:
        """Finish the run: write its outputs, then its result."""
        import numpy as np  # Reports do not need this slow import.

        file, arrays = io.BytesIO(), dict[str, Any](outputs)
        np.savez_compressed(file, **arrays)
        write_bytes(self.outputs, file.getvalue())
        write_json(self._result, schemas.dump(result))

    def extend(self, identity: RunIdentity) -> None:
        """Give the run the epochs of `identity` if those are more. It is unfinished then."""
        if _check_identity(self, identity, extend=True):
            self._result.unlink(missing_ok=True)
            write_json(self._config, schemas.dump(identity))

    def delete(self) -> None:
        """Delete everything that a run writes, except config.json, which marks its folder."""
        # First whatever a later start could continue from, in case this process is killed.
        self._result.unlink(missing_ok=True)
        for path in sorted(self.checkpoints.glob("*")):
            if path.name.isdecimal():
                hide(path)
        for path in (self._card, self._sessions, self._metrics, self.log, self.code, self.outputs):
            path.unlink(missing_ok=True)
        for pattern in (".deleted-*", "damaged-*", "*.orbax-checkpoint-tmp*"):
            for path in sorted(self.checkpoints.glob(pattern)):
                shutil.rmtree(path)
        for path in sorted(self.tensorboard.glob("events.out.tfevents.*")):
            path.unlink()
        for path in (self.checkpoints, self.tensorboard):
            with suppress(OSError):  # The folder is missing, or holds files of the user.
                path.rmdir()


@contextmanager
def open_run_folder(
    path: Path, identity: RunIdentity, *, fresh: bool, extend: bool = False
) -> Iterator[RunFolder]:
    """Create or open the folder of a run, and lock it for the duration of the context.

    Args:
      path: the folder.
      identity: what the run is. A folder that holds another identity is refused.
      fresh: delete the run that is in the folder. Files that a run does not write remain.
      extend: accept a run that has fewer epochs. `RunFolder.extend` then gives it more.

    Raises:
      UserError: another process uses the folder; it holds another run or other files; it is inside
        another run's folder.
    """
    folder, config = RunFolder(path), path / "config.json"
    if not config.exists():
        _check_place(path)
    elif fresh:
        folder.identity()  # Raise if this is no run folder: its files must not be deleted.
    else:
        _check_identity(folder, identity, extend=extend)
    path.mkdir(parents=True, exist_ok=True)
    try:
        with filelock.FileLock(path / ".lock", timeout=0):
            if fresh:
                folder.delete()
            if fresh or not config.exists():
                write_json(config, schemas.dump(identity))
            yield folder
    except filelock.Timeout:
        message = f"{path} is in use by another process. Wait until that process ends, or stop it."
        raise UserError(message) from None


def existing_run_folder(path: Path) -> RunFolder:
    """Return the folder of a run, for reading.

    Raises:
      UserError: it is not a run's folder.
    """
    if not path.is_dir():
        raise UserError(f"{path} does not exist. Run folders are runs/EXPERIMENT/seedN.")
    folder = RunFolder(path)
    folder.identity()
    return folder


def finished_result(path: Path, identity: RunIdentity, *, extend: bool = False) -> Result | None:
    """Return the result of the run in `path`, or None if there is no run or it is not finished.

    Raises:
      UserError: the folder holds another run.
    """
    folder = RunFolder(path)
    if not (path / "config.json").exists():
        return None
    return None if _check_identity(folder, identity, extend=extend) else folder.result()


def default_name(experiment: str, changes: Mapping[str, Any]) -> str:
    """Return the name of the folder for an experiment with changed settings.

    >>> default_name("basic", {"epochs": 5, "optimizer.lr": 0.01})
    'basic@epochs=5,lr=0.01'
    """
    if not changes:
        return experiment
    # The last part of a setting's name stands for the first setting that ends with it.
    owner = {"name": ""}
    for setting in configs.describe():
        owner.setdefault(setting["name"].rpartition(".")[2], setting["name"])
    last = {name: name.rpartition(".")[2] for name in changes}
    short = {name: part if owner.get(part) == name else name for name, part in last.items()}
    text = ",".join(f"{short[name]}={value}" for name, value in changes.items())
    text = re.sub(r"[^\w.,=+@-]+", "-", text)
    if len(text) > 80:
        text = f"{text[:60]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    return f"{experiment}@{text}"


def _lines(rows: list[MetricsRow]) -> bytes:
    return "".join(json.dumps(schemas.dump(row)) + "\n" for row in rows).encode()


def _check_place(path: Path) -> None:
    """Raise if a new run must not be created in `path`."""
    if path.exists() and not path.is_dir():
        raise UserError(f"{path} is a file, not a folder. Choose another --workdir.")
    if path.exists() and any(not entry.name.startswith(".") for entry in path.iterdir()):
        raise UserError(
            f"{path} contains files but no run (no config.json). Choose another --workdir."
        )
    for parent in path.resolve().parents:
        if (parent / "config.json").exists() and (parent / "checkpoints").is_dir():
            raise UserError(f"{path} is inside the run {parent}. Choose another --workdir.")


def _depends_on_epochs(settings: Mapping[str, Any]) -> str | None:
    """Return a part of the run that depends on the number of epochs, if there is one."""
    if settings["schedule.name"] not in ("constant", "plateau", "step"):
        return f"the {settings['schedule.name']} schedule"
    if any(group.get("until") for group in settings["param_groups"]):
        return "param_groups (until)"
    return next((name for name in ("phases", "averaging.power") if settings.get(name)), None)


def _check_identity(folder: RunFolder, wanted: RunIdentity, *, extend: bool) -> bool:
    """Return whether the run in the folder differs from `wanted` only in having fewer epochs.

    Raises:
      UserError: it differs in anything else, or has fewer epochs and `extend` is false.
    """
    stored = folder.identity()
    try:
        stored_settings = configs.identity(stored.settings)
    except UserError as error:
        raise UserError(
            f"{folder.path / 'config.json'} is damaged, or from another version of cifar-jax: "
            f"{error}{'' if str(error).endswith('?') else '.'} Choose another --workdir, or start "
            "over with --fresh."
        ) from None
    changes = configs.differences(
        {"experiment": stored.experiment, "seed": stored.seed, **stored_settings},
        {"experiment": wanted.experiment, "seed": wanted.seed, **configs.identity(wanted.settings)},
    )
    if not changes:
        return False
    advice = "Choose another --workdir, or start over with --fresh."
    if changes.keys() == {"epochs"}:
        before, after = changes["epochs"]
        if after < before:
            advice = f"The number of epochs of a run can only grow. {advice}"
        elif part := _depends_on_epochs(wanted.settings):
            advice = f"The number of epochs cannot change, because {part} depends on it. {advice}"
        elif not extend:
            advice = f"Add --workdir {folder.path} to train this run for more epochs. {advice}"
        else:
            return True
    texts = [
        f"{name} is {configs.as_text(there)} in the folder and {configs.as_text(here)} in this "
        "command"
        for name, (there, here) in changes.items()
    ]
    raise UserError(f"{folder.path} holds another run ({', '.join(texts)}). {advice}")
