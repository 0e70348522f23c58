"""A run's folder: what it was asked, where it ran, how it went, and what came out.

    config.json       experiment, seed, every setting by dotted name, and which were overridden
    model.json        what is needed to use the model anywhere: network, classes, mean, std, data
    model.py          the experiment's file, where that defines the model: read it, and run it only
                      when a person asks for it
    env.json          versions, device, machine, git commit, command line; one object a start
    log.txt           the lines of the training, in the paper's form
    metrics.jsonl     one object an epoch
    tensorboard/      the same for TensorBoard
    checkpoints/      orbax
    test_logits.npy   float16, of the test images in their order, once the run is finished
    result.json       written last, when the run is finished

JSON files appear whole or not at all. No JAX is imported here.
"""

import hashlib
import io
import json
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import filelock

from cifar_jax import config as configs
from cifar_jax.errors import UserError
from cifar_jax.runs import environment, schema
from cifar_jax.runs.files import hide, naming, read_json, write_bytes, write_json

LOGITS = "test_logits.npy"
_OWN_FILES = (
    "result.json",
    LOGITS,
    "model.json",
    "model.py",
    "env.json",
    "log.txt",
    "metrics.jsonl",
)
_CHECKPOINT = re.compile(r"(\.replaced-)?\d+")
_NONE_ANY_MORE = re.compile(
    r"damaged-\d+(-\d+)?|\.deleted-(replaced-)?\d+|\d+\.orbax-checkpoint-tmp.*"
)
_GROWING_SCHEDULES = ("constant", "plateau", "step")
"""Those that do not depend on the number of epochs."""


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
        return schema.checked(read_json(path), {}, path) if path.exists() else None

    def write_result(self, result: Mapping[str, Any], logits: Any) -> None:
        """Finish the run: with the logits `[N, classes]` of the test images, kept as float16."""
        import numpy as np  # here, since reports do without

        file = io.BytesIO()
        np.save(file, logits.astype(np.float16), allow_pickle=False)
        write_bytes(self.path / LOGITS, file.getvalue())
        write_json(self.path / "result.json", result)

    def extend(self, identity: Mapping[str, Any]) -> None:
        """Let the run have the epochs of `identity`, if those are more: it is unfinished then."""
        if _check_identity(self.path, identity, extend=True):
            (self.path / "result.json").unlink(missing_ok=True)
            write_json(self.path / "config.json", identity)

    def card(self) -> dict[str, Any] | None:
        """The model card; None in a folder that was made before there were any."""
        path = self.path / "model.json"
        if not path.exists():
            return None
        if not isinstance(card := read_json(path), dict):
            raise UserError(f"{path} is damaged: it holds no object")
        return card

    def images(self) -> dict[str, Any] | None:
        """What is told of the images that it was trained on: `name`, `sha256`, and `content` where
        it is known; None where nothing is told."""
        if (card := self.card()) is None:
            result = self.result() or {}  # in the runs of before, where they are finished
            if (digest := result.get("data_sha256")) is None:
                return None
            return {"name": result.get("dataset"), "sha256": digest, "content": None}
        if "imported_from" in card:
            return None
        path = self.path / "model.json"
        return schema.checked(
            schema.checked(card, {"data": dict}, path)["data"], schema.IMAGES, path
        )

    def write_card(self, card: Mapping[str, Any]) -> None:
        """Write the model card, from the run's first start on."""
        write_json(self.path / "model.json", card)

    @property
    def code(self) -> Path:
        """A copy of the file that defines the model, where that is none of the package's."""
        return self.path / "model.py"

    def write_code(self, source: bytes, name: str) -> None:
        """Keep what defines the model, and say in the card of which file it is."""
        write_bytes(self.code, source)
        digest = hashlib.sha256(source).hexdigest()
        self.write_card((self.card() or {}) | {"code": {"file": name, "sha256": digest}})

    def starts(self) -> list[dict[str, Any]]:
        """Where and when the run was started, the first first."""
        path = self.path / "env.json"
        starts = read_json(path) if path.exists() else []
        if not isinstance(starts, list):
            raise UserError(f"{path} is not that of a run: it holds no list")
        return [schema.checked_start(start, path) for start in starts]

    def epochs(self) -> tuple[list[dict[str, Any]], int]:
        """Metrics of the epochs so far, by epoch, and how many lines of them cannot be read.

        Where an epoch was written down twice, the later line counts.
        """
        rows: dict[int, dict[str, Any]] = {}
        lost = 0
        path = self.path / "metrics.jsonl"
        text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
        for line in text.splitlines():
            try:
                row = json.loads(line)
                rows[int(row["epoch"])] = row
            except (ValueError, LookupError, TypeError, OverflowError, RecursionError):
                lost += 1
        return [rows[epoch] for epoch in sorted(rows)], lost

    def append_epoch(self, row: Mapping[str, Any]) -> None:
        """Add the metrics of an epoch."""
        path = self.path / "metrics.jsonl"
        with naming(path), path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def rewind(self, epoch: int) -> list[dict[str, Any]]:
        """Drop the metrics after `epoch`, which a resumed run is about to make again, and what
        cannot be read or makes no sense; returns those that are kept."""
        told = self.path / "metrics.jsonl"
        rows = []
        for row in self.epochs()[0]:
            with suppress(UserError):
                if schema.checked(row, schema.EPOCH_TO_GO_ON_FROM, told)["epoch"] <= epoch:
                    rows.append(row)
        text = "".join(json.dumps(row) + "\n" for row in rows)
        write_bytes(told, text.encode())
        return rows

    def record_start(self, device: Mapping[str, Any], execution: Mapping[str, Any]) -> None:
        """Add where and when this start runs, and how it is carried out, to env.json."""
        start = {
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": sys.argv,
            **environment.describe(),
            "device": dict(device),
            "execution": dict(execution),
        }
        write_json(self.path / "env.json", [*self.starts(), start])


@contextmanager
def open_workdir(
    path: Path, identity: Mapping[str, Any], *, fresh: bool, extend: bool = False
) -> Iterator[Workdir]:
    """The run's folder, made or found, and locked for as long as the context lasts.

    Args:
      path: the folder.
      identity: what config.json holds: `experiment`, `seed`, `overrides` and `config`, the settings
        by dotted name. A folder that holds another is refused.
      fresh: delete the run that is in the folder first. Other files in it stay.
      extend: let a run that is there have more epochs than it was made with. It has them from
        `Workdir.extend` on.

    Raises:
      UserError: another process is at work in the folder; it holds another config, or files that
        are not a run's, or lies in another run's; it cannot be made or written to.
    """
    known = path / "config.json"
    lock = filelock.FileLock(path / ".lock")
    try:
        if path.exists() and not path.is_dir():
            raise UserError(f"{path} is not a folder")
        visible = [p for p in path.iterdir() if not p.name.startswith(".")] if path.is_dir() else []
        if visible and not known.exists():
            raise UserError(f"{path} holds other files and no run: choose another --workdir")
        if not known.exists():
            _refuse_inside_a_run(path)
        if known.exists() and fresh:
            _read_identity(path)  # what cannot be told from a stranger's is not deleted
        elif known.exists():
            _check_identity(path, identity, extend=extend)
        path.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise UserError(f"{path} is in use by another process; wait for it or stop it") from None
    except OSError as error:
        raise UserError(f"{path} cannot be used: {error.strerror or error}") from None
    try:
        if fresh:
            _delete_run(path)
        # The last to be replaced: a folder with files and no config.json would be taken for
        # somebody else's, if this were killed on the way.
        if fresh or not known.exists():
            write_json(known, identity)
        yield Workdir(path)
    finally:
        lock.release()


def finished_result(
    path: Path, identity: Mapping[str, Any], *, extend: bool = False
) -> dict[str, Any] | None:
    """The result of the run in `path`, if there is one and it is finished.

    Raises:
      UserError: the folder holds a run of another config.
    """
    if not (path / "config.json").exists():
        return None
    extended = _check_identity(path, identity, extend=extend)
    return None if extended else Workdir(path).result()


def existing_workdir(path: Path) -> tuple[Workdir, dict[str, Any]]:
    """The folder of a run that was made before, for reading, and its config.json.

    Raises:
      UserError: it is not a run's folder.
    """
    if not path.is_dir():
        raise UserError(f"no folder {path}; runs are under runs/EXPERIMENT/seedN")
    return Workdir(path), _read_identity(path)


def folder_name(experiment: str, changes: Mapping[str, Any]) -> str:
    """Where runs of an experiment go by default: its name, and what differs from its settings.

    >>> folder_name("basic", {"epochs": 5, "optimizer.lr": 0.01})
    'basic@epochs=5,lr=0.01'
    """
    if not changes:
        return experiment
    # Of settings with the same last name only the first goes by it, and none by "name".
    first = {"name": ""}
    for row in configs.describe():
        first.setdefault(row["name"].rpartition(".")[2], row["name"])
    last = {name: name.rpartition(".")[2] for name in changes}
    short = {name: part if first.get(part) == name else name for name, part in last.items()}
    text = ",".join(f"{short[name]}={value}" for name, value in changes.items())
    text = re.sub(r"[^\w.,=+@-]+", "-", text)
    if len(text) > 80:
        text = f"{text[:60]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    return f"{experiment}@{text}"


def _refuse_inside_a_run(path: Path) -> None:
    """Where nobody would find it: `--workdir RUN --seeds 3` would put runs there."""
    for folder in path.resolve().parents:
        if (folder / "config.json").exists() and (folder / "checkpoints").is_dir():
            raise UserError(f"{path} is inside the run in {folder}: choose another --workdir")


def _delete_run(path: Path) -> None:
    """Delete what a run has written, and nothing else: its config.json stays to be replaced."""
    checkpoints, tensorboard = path / "checkpoints", path / "tensorboard"

    def named(pattern: re.Pattern[str]) -> list[Path]:
        names = checkpoints.iterdir() if checkpoints.is_dir() else ()
        return [found for found in names if pattern.fullmatch(found.name)]

    try:
        # First what a run that begins here would go on from, were this killed on the way.
        (path / "result.json").unlink(missing_ok=True)
        for found in named(_CHECKPOINT):
            hide(found)
        for name in _OWN_FILES:
            (path / name).unlink(missing_ok=True)
        for found in named(_NONE_ANY_MORE):
            shutil.rmtree(found)
        for found in tensorboard.glob("events.out.tfevents.*"):
            found.unlink()
        for folder in (checkpoints, tensorboard):
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
    except OSError as error:
        raise UserError(
            f"{error.filename or path} cannot be deleted ({error.strerror}): "
            "choose another --workdir, or delete it yourself"
        ) from None


def _read_identity(path: Path) -> dict[str, Any]:
    identity = read_json(path / "config.json")
    if not (
        isinstance(identity, dict)
        and {"experiment", "seed"} <= identity.keys()
        and isinstance(identity.get("config"), dict)
        and {"model.name", "epochs"} <= identity["config"].keys()
    ):
        raise UserError(f"{path / 'config.json'} is damaged, or not a run's")
    return identity


def _made_for_its_epochs(config: Mapping[str, Any]) -> str:
    """What would have been otherwise from the beginning, were there more epochs; else empty."""
    schedule = config["schedule.name"]
    if schedule not in _GROWING_SCHEDULES:
        return f"{schedule} schedule is"
    if config.get("phases"):
        return "phases are"
    if any(group.get("until") for group in config.get("param_groups") or ()):
        return "groups' until is"
    return "lookahead's power is" if config.get("averaging.power") else ""


def _check_identity(path: Path, wanted: Mapping[str, Any], *, extend: bool) -> bool:
    """Whether the run in `path` is the one that is wanted but for more epochs."""
    there = _read_identity(path)

    def settings(identity: Mapping[str, Any]) -> dict[str, Any]:
        try:
            own = configs.identity(identity["config"])
        except UserError as error:
            raise UserError(f"{path / 'config.json'}: {error}") from None
        return {key: identity[key] for key in ("experiment", "seed")} | own

    differing = configs.differences(settings(there), settings(wanted))
    if not differing:
        return False
    advice = "choose another --workdir, or --fresh"
    if differing.keys() == {"epochs"}:
        before, after = differing["epochs"]
        if after < before:
            advice = "it cannot have fewer; " + advice
        elif part := _made_for_its_epochs(wanted["config"]):
            advice = f"its {part} made for {before} epochs; " + advice
        elif not extend:
            advice = f"name the folder by --workdir {path} to train it on; or " + advice
        else:
            return True
    listing = ", ".join(f"{k}: {a!r} there, {b!r} here" for k, (a, b) in differing.items())
    raise UserError(f"{path} holds a run of another config ({listing}): {advice}")
