"""The folder of one run. docs/run-folder.md describes its files.

Importing this module does not import JAX.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cifar_jax import config as configs
from cifar_jax.errors import UserError
from cifar_jax.files import hide, write_arrays, write_bytes, write_json
from cifar_jax.runs import schemas
from cifar_jax.runs.lock import lock
from cifar_jax.runs.schemas import MetricsRow, ModelCard, Result, RunIdentity, Session

if TYPE_CHECKING:
    import numpy as np


class RunFolder:
    """Reads and writes the files of one run.

    Training opens the folder with `open_run_folder`. Readers open it with `existing_run_folder`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.tensorboard = path / "tensorboard"
        self.log = path / "log.txt"
        self.code = path / "code.py"
        """Path of the copy of the experiment file. It exists if the file defines custom parts."""
        self.outputs = path / "outputs.npz"
        """Path of the logits and labels of a finished run."""
        self._validation = path / "validation.npz"
        self._skipped = path / "skipped_images.txt"
        self._config = path / "config.json"
        self._card = path / "model.json"
        self._sessions = path / "env.json"
        self._metrics = path / "metrics.jsonl"
        self._result = path / "result.json"

    def identity(self) -> RunIdentity:
        """Return the experiment, the seed and the settings of the run."""
        # A run with --fresh refuses a damaged config.json, so do not advise it.
        remedy = "Restore it from a backup, or train the run again in another folder."
        return schemas.read(self._config, RunIdentity, remedy)

    def result(self) -> Result | None:
        """Return the result of the run, or None if the run is not finished."""
        return schemas.read(self._result, Result) if self._result.exists() else None

    def card(self) -> ModelCard | None:
        """Return the model card, or None if it has not been written yet."""
        return schemas.read(self._card, ModelCard) if self._card.exists() else None

    def sessions(self) -> list[Session]:
        """Return the sessions of the run, oldest first."""
        return schemas.read_sessions(self._sessions)

    def rows(self) -> list[MetricsRow]:
        """Return the metrics of the completed epochs. Lines that cannot be read are skipped."""
        return schemas.read_rows(self._metrics)[0]

    def append_row(self, row: MetricsRow) -> None:
        """Add the metrics of an epoch to `metrics.jsonl`."""
        text = self._metrics.read_bytes() if self._metrics.exists() else b""
        write_bytes(self._metrics, text + _lines([row]))

    def rewind(self, epoch: int) -> list[MetricsRow]:
        """Delete the metrics of all epochs after `epoch`, and return the remaining metrics."""
        rows = [row for row in self.rows() if row.epoch <= epoch]
        write_bytes(self._metrics, _lines(rows))
        return rows

    def write_card(self, card: ModelCard) -> None:
        """Write the model card."""
        write_json(self._card, schemas.dump(card))

    def write_code(self, source: bytes) -> None:
        """Write a copy of the experiment file."""
        write_bytes(self.code, source)

    def write_skipped(self, messages: Sequence[str]) -> None:
        """Write one line for each skipped image to `skipped_images.txt`."""
        text = "".join(f"{message}\n" for message in messages)
        write_bytes(self._skipped, text.encode(errors="replace"))

    def move_data(self, dataset: str) -> None:
        """Store the current folder of the run's images, in case the images were moved."""
        identity = self.identity()
        if identity.settings["data.dataset"] != dataset:
            settings = identity.settings | {"data.dataset": dataset}
            write_json(
                self._config, schemas.dump(identity.model_copy(update={"settings": settings}))
            )

    def add_session(self, session: Session) -> None:
        """Add a session to `env.json`."""
        sessions = [*self.sessions(), session]
        write_json(self._sessions, [schemas.dump(entry) for entry in sessions])

    def write_validation(self, logits: np.ndarray, labels: np.ndarray, epoch: int) -> None:
        """Write the validation logits and labels after an epoch of an unfinished run."""
        arrays = {"validation_logits": logits, "validation_labels": labels, "epoch": epoch}
        write_arrays(self._validation, arrays)

    def write_result(self, result: Result, outputs: Mapping[str, np.ndarray]) -> None:
        """Finish the run: write its logits and labels, then its result."""
        write_arrays(self.outputs, outputs, compress=True)
        write_json(self._result, schemas.dump(result))
        # The file `outputs` also holds the validation logits.
        self._validation.unlink(missing_ok=True)

    def extend(self, identity: RunIdentity) -> None:
        """Increase the number of epochs to that of `identity`, if `identity` has more epochs.

        The run is then unfinished, and its result is deleted.
        """
        if _check_identity(self, identity, extend=True):
            self._result.unlink(missing_ok=True)
            write_json(self._config, schemas.dump(identity))

    def delete(self) -> None:
        """Delete all files of the run except `config.json`, which marks the run folder."""
        # Delete the result and the checkpoints first. If the process is then killed, no part of the
        # run can be resumed.
        self._result.unlink(missing_ok=True)
        for path in sorted(self.checkpoints.glob("*")):
            if path.name.isdecimal():
                hide(path)
        written = (self._card, self._sessions, self._metrics, self._skipped, self._validation)
        for path in (*written, self.log, self.code, self.outputs):
            path.unlink(missing_ok=True)
        for pattern in (".deleted-*", "damaged-*", "*.orbax-checkpoint-tmp*"):
            for path in sorted(self.checkpoints.glob(pattern)):
                shutil.rmtree(path)
        for path in sorted(self.tensorboard.glob("events.out.tfevents.*")):
            path.unlink()
        for path in (self.checkpoints, self.tensorboard):
            with suppress(OSError):  # Ignore a missing folder. Keep other files.
                path.rmdir()


@contextmanager
def open_run_folder(
    path: Path, identity: RunIdentity, *, fresh: bool, extend: bool = False
) -> Iterator[RunFolder]:
    """Create or open the folder of a run, and lock it until the context ends.

    Args:
      path: the folder.
      identity: experiment, seed and settings. A folder that holds another run is refused.
      fresh: delete an existing run in the folder. Files that a run does not write are kept.
      extend: accept a run that has fewer epochs than `identity`. `RunFolder.extend` then increases
        the run's number of epochs.

    Raises:
      UserError: another process uses the folder, the folder holds another run or other files, or it
        is inside the folder of another run.
    """
    folder, config = RunFolder(path), path / "config.json"
    if not config.exists():
        _check_place(path)
    elif fresh:
        folder.identity()  # This raises UserError if `config.json` is not that of a run.
    else:
        _check_identity(folder, identity, extend=extend)
    path.mkdir(parents=True, exist_ok=True)
    with lock(path):
        if fresh:
            folder.delete()
        if fresh or not config.exists():
            write_json(config, schemas.dump(identity))
        yield folder


def existing_run_folder(path: Path) -> RunFolder:
    """Return the folder of an existing run, for reading.

    Raises:
      UserError: `path` is not a run folder.
    """
    if not path.is_dir():
        raise UserError(f"{path} does not exist. Run folders are runs/EXPERIMENT/seedN.")
    folder = RunFolder(path)
    folder.identity()
    return folder


def finished_result(path: Path, identity: RunIdentity, *, extend: bool = False) -> Result | None:
    """Return the result of the run in `path`, or None if there is no finished run.

    Raises:
      UserError: the folder holds another run.
    """
    folder = RunFolder(path)
    if not (path / "config.json").exists():
        return None
    return None if _check_identity(folder, identity, extend=extend) else folder.result()


def default_name(experiment: str, changes: Mapping[str, Any]) -> str:
    """Return the default name of the run folder for an experiment with changed settings.

    >>> default_name("basic", {"epochs": 5, "optimizer.lr": 0.01})
    'basic@epochs=5,lr=0.01'
    """
    if not changes:
        return experiment
    # In a folder name, `lr` means the first setting that ends with `.lr`. Other settings that end
    # with `.lr` have their full name.
    owner = {"name": ""}
    for setting in configs.describe():
        owner.setdefault(setting["name"].rpartition(".")[2], setting["name"])
    last = {name: name.rpartition(".")[2] for name in changes}
    short = {name: part if owner.get(part) == name else name for name, part in last.items()}
    text = ",".join(f"{short[name]}={_short(value)}" for name, value in changes.items())
    text = re.sub(r"[^\w.,=+@-]+", "-", text)
    if len(text) > 80:
        text = f"{text[:60]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    return f"{experiment}@{text}"


def _short(value: Any) -> str:
    """Return a value as text for a folder name. A whole number has no `.0`."""
    return configs.as_text(value) if isinstance(value, float) else str(value)


def _lines(rows: list[MetricsRow]) -> bytes:
    return "".join(json.dumps(schemas.dump(row)) + "\n" for row in rows).encode()


def _check_place(path: Path) -> None:
    """Raise UserError if `path` is not a suitable place for a new run folder."""
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
    """Return the name of a setting that depends on the number of epochs, or None."""
    if settings["schedule.name"] not in ("constant", "plateau", "step", "milestones"):
        return f"the {settings['schedule.name']} schedule"
    if any(group.get("until") for group in settings["param_groups"]):
        return "param_groups (until)"
    return next((name for name in ("phases", "averaging.power") if settings.get(name)), None)


def _check_identity(folder: RunFolder, wanted: RunIdentity, *, extend: bool) -> bool:
    """Return whether the run in the folder has fewer epochs than `wanted`, but is otherwise equal.

    Raises:
      UserError: the runs differ in another way, or the run has fewer epochs and cannot be extended.
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
    kinds = [str(name).partition(":")[0] for name in changes.get("data.dataset", ())]
    if kinds and kinds[0] == kinds[1] and kinds[0] in configs.FILE_KINDS:
        # Ignore the path of the images, which may change. `check_images` compares the images.
        del changes["data.dataset"]
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
