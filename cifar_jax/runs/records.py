"""Records: runs of the experiments at their very settings, as they are committed in `results/`.

    NAME-seedN.json             a finished run's result, with its settings and its starts
    NAME-seedN.metrics.jsonl    its metrics, one line an epoch
    NAME-seedN.outputs.npz      what the network says of the test images, and their labels
    partial/NAME-seedN.*        of a run on its way: settings and starts, and the metrics so far

A record stands for what anybody gets who checks out its commit and trains that experiment. So the
run must be of an experiment as it is in this package today, on the official images, and its commits
must tell the whole code. The labels (10 KB, CIFAR-10's, no images) are beside the logits, so that
whatever is drawn of a record needs no data set, in whichever order that had its images.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from cifar_jax.config import identity
from cifar_jax.errors import UserError
from cifar_jax.files import read_json
from cifar_jax.runs import schema
from cifar_jax.runs.run import Run, experiments

if TYPE_CHECKING:
    import numpy as np

_PARTIAL = "partial"
# Images of 10,000 that the logits may class otherwise than the result says. Rounding to float16
# moved up to 3 in the first five records, and another processor or a GPU moves a few more.
_ROUNDING = 0.1  # percentage points


class Outputs(NamedTuple):
    """What a network says of the test images."""

    logits: np.ndarray
    """float16 `[N, classes]`."""
    labels: np.ndarray
    """uint8 `[N]`."""

    def accuracy(self) -> float:
        """In percent."""
        return 100 * float((self.logits.argmax(-1) == self.labels).mean())


def check(run: Run, results: Path) -> None:
    """That `run` can be recorded in `results`: all that is known without its outputs.

    Raises:
      UserError: it has other settings than its experiment or other images than CIFAR-10's, does not
        name its code, went on at half its learning rate, lacks metrics of an epoch, or its files
        contradict each other.
    """
    path, result, starts = run.path, run.result, run.starts
    if run.experiment not in experiments():
        raise UserError(f"{path} is of {run.experiment!r}, which is not in experiments/")
    if run.changes:
        own = identity(experiments()[run.experiment])
        listing = ", ".join(f"{k}={v} (now {own.get(k)})" for k, v in run.changes.items())
        raise UserError(f"{path} has other settings than {run.experiment} today: {listing}")
    if run.other_data:
        raise UserError(f"{path} ran on other images than the official CIFAR-10's")
    if not starts:
        raise UserError(f"{path} has no env.json, which tells where it ran and from which commit")
    for commit in [start["git_commit"] for start in starts]:
        if commit is None or commit.endswith("-dirty"):
            code = "no git commit" if commit is None else f"changes not committed ({commit})"
            raise UserError(f"{path} ran from {code}: commit, and train it from a clean checkout")
    done = [row["epoch"] for row in run.rows]
    if not done or done != list(range(1, len(done) + 1)) or len(done) > run.epochs:
        raise UserError(
            f"{path / 'metrics.jsonl'} lacks epochs: a record needs the metrics of every epoch"
        )
    if run.halvings:
        raise UserError(
            f"{path} went on at a lower learning rate than its experiment's, since the loss was "
            "not finite: lower optimizer.lr in the experiment"
        )
    if result is None:
        full = results / f"{_name(run)}.json"
        if full.exists() and not read_record(full).changes:
            raise UserError(f"{path} is not finished, and {full} is of a run that is")
        return
    epochs = min(run.epochs, run.settings["epochs"])
    told = {"experiment": run.experiment, "seed": run.seed, "epochs": epochs}
    told |= {k: v for k, v in run.rows[-1].items() if k in ("train_loss", "validation_loss")}
    differing = [name for name, value in told.items() if result.get(name) != value]
    if differing or len(done) < run.epochs:
        differing = differing or [f"epochs: {len(done)} in metrics.jsonl"]
        raise UserError(f"{path / 'result.json'} is not of the run beside it ({differing[0]})")


def record(run: Run, results: Path, outputs: Outputs | None) -> Path:
    """Write the record of `run` into `results`, whole or not at all; returns its JSON file.

    A former record of the same experiment and seed is replaced: the repository's history keeps it.

    Args:
      run: that of a folder; unfinished, it becomes a record of its own kind.
      results: where records are kept.
      outputs: of a finished run, after its last epoch.

    Raises:
      UserError: as `check`, or the outputs do not give the accuracy that the run has measured, or
        the record cannot be written. Then nothing was written.
    """
    check(run, results)
    name = _name(run)
    told = {"settings": dict(run.settings), "starts": [_start(start) for start in run.starts]}
    metrics = "".join(json.dumps(row) + "\n" for row in run.rows).encode()
    if run.result is None:
        content = {
            "experiment": run.experiment,
            "seed": run.seed,
            "overrides": dict(run.overrides),
            "data_sha256": run.data,
            "data_official": run.data_official,
            **told,
        }
        path = results / _PARTIAL / f"{name}.json"
        _write(path, content, {".metrics.jsonl": metrics})
        return path
    expected = run.result["test_accuracy"]
    accuracy = outputs.accuracy() if outputs else 0.0
    if not outputs or not abs(accuracy - expected) <= _ROUNDING:
        raise UserError(
            f"{run.path}: its outputs for the test images give {accuracy:.2f} %, its result.json "
            f"says {expected:.2f} %"
        )
    path = results / f"{name}.json"
    files = {".metrics.jsonl": metrics, ".outputs.npz": _packed(outputs)}
    _write(path, {**run.result, "overrides": dict(run.overrides), **told}, files)
    _remove(results / _PARTIAL / f"{name}.json")
    return path


def read_records(folder: Path) -> list[Run]:
    """The records in `folder`, those of runs on their way last.

    Raises:
      UserError: no such folder, or a record that cannot be read.
    """
    if not folder.is_dir():
        raise UserError(f"no folder {folder} with the records of runs")
    found = [sorted(place.glob("*-seed*.json")) for place in (folder, folder / _PARTIAL)]
    return [read_record(path) for paths in found for path in paths]


def read_record(path: Path) -> Run:
    """The run that the record `path` is of.

    Raises:
      UserError: it cannot be read, is no record, or lacks one of the files beside it.
    """
    content = schema.checked_run(read_json(path), "settings", path)
    starts = content.get("starts")
    if not isinstance(starts, list) or not starts:
        raise UserError(f"{path} is incomplete: it has no 'starts'")
    starts = [schema.checked_start(start, path) for start in starts]
    finished = path.parent.name != _PARTIAL
    result = schema.checked_result(content, path) if finished else None
    metrics, outputs = _beside(path, ".metrics.jsonl"), _beside(path, ".outputs.npz")
    for file in (metrics, outputs) if finished else (metrics,):
        if not file.is_file():
            raise UserError(f"{path} is incomplete: there is no {file.name} beside it")
    try:
        lines = metrics.read_text(encoding="utf-8").splitlines()
        rows = [schema.checked_epoch(json.loads(line), metrics) for line in lines]
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{metrics} cannot be read: {error}") from None
    return Run(
        path,
        content["experiment"],
        content["seed"],
        content["settings"],
        content["overrides"],
        result,
        rows,
        starts,
        outputs if finished else None,
        content.get("data_sha256"),
        content.get("data_official"),
    )


def read_outputs(path: Path) -> Outputs:
    """The outputs that a record has beside it.

    Raises:
      UserError: they cannot be read.
    """
    import numpy as np

    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
            logits, labels = file["logits"], file["labels"]
    # The readers of zip, deflate and npy each have errors of their own.
    except Exception as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or not labels.size:
        raise UserError(f"{path} does not hold logits and their labels")
    return Outputs(logits, labels)


def _name(run: Run) -> str:
    return f"{run.experiment.replace('/', '-')}-seed{run.seed}"


def _start(start: Mapping[str, Any]) -> dict[str, Any]:
    """Without the command line, whose paths are of one machine and tell nothing to another."""
    return {name: value for name, value in start.items() if name != "command"}


def _packed(outputs: Outputs) -> bytes:
    import numpy as np

    file = io.BytesIO()
    logits, labels = outputs.logits.astype(np.float16), outputs.labels.astype(np.uint8)
    np.savez_compressed(file, logits=logits, labels=labels)
    return file.getvalue()


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.stem + suffix)


def _write(path: Path, content: Mapping[str, Any], files: Mapping[str, bytes]) -> None:
    """All of a record's files or none: its JSON, without which the rest is no record, at last."""
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    wanted = {_beside(path, suffix): data for suffix, data in files.items()}
    wanted[path] = text.encode()
    hidden = {file: file.with_name(f".{file.name}.{os.getpid()}") for file in wanted}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for file, data in wanted.items():
            hidden[file].write_bytes(data)
        path.unlink(missing_ok=True)
        for file in wanted:
            hidden[file].replace(file)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from None
    finally:
        for file in hidden.values():
            file.unlink(missing_ok=True)


def _remove(path: Path) -> None:
    for file in (path, _beside(path, ".metrics.jsonl")):
        file.unlink(missing_ok=True)
    if path.parent.is_dir() and not any(path.parent.iterdir()):
        path.parent.rmdir()
