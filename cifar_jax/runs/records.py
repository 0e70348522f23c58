"""Records: the results of finished runs, which are committed in `results/`.

    NAME-seedN.json             the result, without the command lines of the sessions
    NAME-seedN.metrics.jsonl    one line per epoch
    NAME-seedN.outputs.npz      `test_logits` and `test_labels`; may be left out to save space
    NAME-seedN.model.json       the model card; old records have none

Anyone can reproduce a record: check out its commit and train its experiment. A run can therefore be
recorded only if its settings equal those of the current experiment file, and if it used the
official images and committed code.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cifar_jax import config
from cifar_jax.errors import UserError, counted
from cifar_jax.files import write_arrays, write_bytes, write_json
from cifar_jax.runs.outputs import Outputs, read_outputs
from cifar_jax.runs.run import RunRecord, experiments
from cifar_jax.runs.schemas import ModelCard, Result, dump, read, read_rows

CARD = ".model.json"
"""Suffix of the model card of a record."""


def record(runs: Sequence[RunRecord], results: Path, *, with_outputs: bool = True) -> list[Path]:
    """Write a record of each run to the folder `results`, and return the JSON files.

    An older record of the same experiment and seed is replaced.

    Args:
      runs: the runs to record.
      results: folder of the records.
      with_outputs: whether the records include the logits of the test images.

    Raises:
      UserError: a run cannot be recorded; see `check`. Also raised if two runs have the same
        experiment and seed. In both cases nothing is written.
    """
    outputs = [check(run) for run in runs]
    paths: dict[tuple[str, int], Path] = {}
    for run in runs:
        other = paths.setdefault((run.experiment, run.seed), run.path)
        if other != run.path:
            raise UserError(
                f"{other} and {run.path} are runs of {run.experiment} with seed {run.seed}, and "
                "would have the same record: name one of them"
            )
    results.mkdir(parents=True, exist_ok=True)
    return [
        _write(run, out if with_outputs else None, results)
        for run, out in zip(runs, outputs, strict=True)
    ]


def check(run: RunRecord) -> Outputs:
    """Return the outputs of a run, after checking that the run can be recorded.

    Raises:
      UserError: the run is not finished, its settings differ from the current experiment file, it
        used other images or uncommitted code, the metrics of an epoch are missing, or its logits do
        not give the test accuracy in its result.
    """
    path = run.path
    if run.result is None:
        raise UserError(f"the run in {path} is not finished: resume it with `cifar-jax train`")
    if run.experiment not in experiments():
        raise UserError(
            f"{path} cannot be recorded: {run.experiment!r} is not an experiment of this package"
        )
    if run.code:
        raise UserError(f"{path} cannot be recorded: it has custom parts")
    if run.changes:
        current = config.identity(experiments()[run.experiment])
        listing = "; ".join(
            f"{name} is {_text(value)}, not {_text(current[name])}"
            if name in current
            else f"{name} is {_text(value)}, but the experiment has no such setting"
            for name, value in run.changes.items()
        )
        raise UserError(
            f"{path} cannot be recorded: its settings differ from the experiment {run.experiment} "
            f"({listing}). Record a run without --set."
        )
    if run.has_other_images:
        raise UserError(
            f"{path} cannot be recorded: it was not trained on the official CIFAR-10 images"
        )
    for commit in [session.git_commit for session in run.sessions] or [None]:
        if commit is None:
            raise UserError(
                f"{path} cannot be recorded: it was trained outside a git checkout. Train it again "
                "in a checkout without uncommitted changes."
            )
        if commit.endswith("-dirty"):
            raise UserError(
                f"{path} cannot be recorded: it was trained with uncommitted code ({commit}). "
                "Commit the code, then train again with --fresh."
            )
    # With early stopping, this may be less than the number of epochs in the settings.
    epochs = run.result.epochs
    if [row.epoch for row in run.rows] != list(range(1, epochs + 1)):
        raise UserError(
            f"{path} cannot be recorded: metrics.jsonl does not have one line for each of its "
            f"{counted(epochs, 'epoch')}"
        )
    if run.outputs is None:
        raise UserError(f"{path} cannot be recorded: it has no outputs.npz")
    outputs = read_outputs(run.outputs)
    correct = int((outputs.logits.argmax(-1) == outputs.labels).sum())
    accuracy = 100 * correct / len(outputs.labels)
    if abs(accuracy - run.result.test_accuracy) > 1e-6:
        raise UserError(
            f"{path} cannot be recorded: the test accuracy is {accuracy:.2f} % in outputs.npz and "
            f"{run.result.test_accuracy:.2f} % in result.json"
        )
    return outputs


def read_records(folder: Path) -> list[RunRecord]:
    """Return the records in a folder, sorted by file name.

    Raises:
      UserError: the folder is missing, or a record cannot be read.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder of records")
    files = sorted(folder.glob("*-seed*.json"))
    return [read_record(path) for path in files if not path.name.endswith(CARD)]


def read_record(path: Path) -> RunRecord:
    """Return the run that a record describes.

    Raises:
      UserError: the record cannot be read, or its metrics are missing.
    """
    remedy = "Restore it from a backup, or record the run again."
    result = read(path, Result, remedy)
    metrics, outputs = path.with_suffix(".metrics.jsonl"), path.with_suffix(".outputs.npz")
    if not metrics.is_file():
        raise UserError(f"{metrics} is missing. {remedy}")
    rows, unreadable = read_rows(metrics)
    if unreadable:
        raise UserError(
            f"{metrics} is damaged: {counted(unreadable, 'line')} cannot be read. {remedy}"
        )
    card_file = path.with_suffix(CARD)
    card = read(card_file, ModelCard, remedy) if card_file.exists() else None
    return RunRecord.finished(path, result, rows, outputs if outputs.exists() else None, card)


def _text(value: Any) -> str:
    return config.as_text(value)


def _write(run: RunRecord, outputs: Outputs | None, results: Path) -> Path:
    assert run.result
    content = dump(run.result)
    for session in content["sessions"]:
        del session["command"]  # The command contains paths on this machine.
    path = results / f"{run.experiment}-seed{run.seed}.json"
    rows = "".join(json.dumps(dump(row)) + "\n" for row in run.rows)
    write_bytes(path.with_suffix(".metrics.jsonl"), rows.encode())
    file = path.with_suffix(".outputs.npz")
    if outputs:
        arrays = {"test_logits": outputs.logits, "test_labels": outputs.labels}
        write_arrays(file, arrays, compress=True)
    else:
        file.unlink(missing_ok=True)
    if run.card:
        write_json(path.with_suffix(CARD), dump(run.card))
    write_json(path, content)
    return path
