"""The command `cifar-jax evaluate`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cifar_jax import runtime
from cifar_jax.cli.code import CODE, load_code
from cifar_jax.cli.output import AS_JSON, DEVICE, LocalPath, print_table
from cifar_jax.errors import UserError, counted
from cifar_jax.files import local_path

if TYPE_CHECKING:
    from cifar_jax.inference.evaluate import Evaluation
    from cifar_jax.inference.robustness import Robustness

_MAX_CLASSES = 20
"""Largest number of classes in the printed table. The table shows the classes with the lowest
accuracy."""
_CORRUPTIONS = "cifar10-c:"


@click.command(short_help="Print the scores of a trained model.")
@click.argument("run", type=LocalPath())
@click.option(
    "--split",
    type=click.Choice(["train", "validation", "test"]),
    help="Evaluate on this split of the run's data set.  [default: test]",
)
@click.option(
    "--data",
    metavar="DATA",
    help="Evaluate on other labeled images: folder:PATH, npz:FILE, npy:IMAGES,LABELS, tfds:NAME, "
    "cifar10-c:FOLDER, cifar10, cifar100 or digits.",
)
@click.option("--best", is_flag=True, help="Use the epoch with the best validation metric.")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="New location of the run's images: data.dataset=folder:PATH or data.dataset=npz:FILE.",
)
@CODE
@DEVICE
@AS_JSON
def evaluate(
    run: Path,
    split: str | None,
    data: str | None,
    best: bool,
    settings: Sequence[str],
    code: Path | None,
    device: str | None,
    as_json: bool,
) -> None:
    """Print how well RUN classifies a split of its data set, or other labeled images.

    RUN is a run folder, a file of `cifar-jax export` (safetensors or stablehlo), or the name of a
    packaged network, such as net-bn-gap. If the run used test-time augmentation, the accuracy
    without it is printed too.
    """
    if any(not setting.startswith("data.dataset=") for setting in settings):
        raise UserError("evaluate takes only --set data.dataset=NAME: leave out other settings")
    if data and (split or settings):
        raise UserError(
            f"--data replaces the data set of the run: leave out {'--split' if split else '--set'}"
        )
    dataset = settings[-1].partition("=")[2] if settings else None
    runtime.set_up()
    runtime.require(device)
    custom = load_code(code, run)
    if data and data.startswith(_CORRUPTIONS):
        from cifar_jax.inference.robustness import evaluate_corruptions

        folder = local_path(data.removeprefix(_CORRUPTIONS), "--data")
        robustness, notes = evaluate_corruptions(run, folder, best, custom)
        _print_notes(notes)
        if as_json:
            click.echo(json.dumps(robustness.as_dict(), indent=2))
        else:
            _print_robustness(robustness)
        return
    from cifar_jax.inference import evaluate as evaluation

    if data:
        result, notes = evaluation.evaluate_on(run, data, best, custom)
        _print_notes(notes)
    else:
        result = evaluation.evaluate(run, split or "test", best, custom, dataset)
    if as_json:
        click.echo(json.dumps(result.as_dict(), indent=2))
    else:
        _print_scores(result)


def _print_notes(notes: Sequence[str]) -> None:
    for note in notes:
        click.echo(note, err=True)


def _model(result: Evaluation | Robustness) -> str:
    epoch = "" if result.epoch is None else f", epoch {result.epoch}"
    return f"{result.experiment} seed {result.seed}{epoch}"


def _print_scores(result: Evaluation) -> None:
    scores = result.scores
    what = f"{result.split} accuracy" if result.split else f"accuracy on {result.data}"
    text = (
        f"{_model(result)}: {what} {scores.accuracy:.2f} %, loss {scores.loss:.4f}, over "
        f"{result.images:,} images"
    )
    if scores.loss_plain != scores.loss:
        text += (
            f"; without test-time augmentation {scores.accuracy_plain:.2f} %, loss "
            f"{scores.loss_plain:.4f}"
        )
    click.echo(text)
    top5 = "" if scores.top5_accuracy is None else f"top-5 accuracy {scores.top5_accuracy:.2f} %, "
    click.echo(
        f"balanced accuracy {scores.balanced_accuracy:.2f} %, macro F1 {scores.macro_f1:.2f} %, "
        f"{top5}calibration error {scores.calibration_error:.2f} %"
    )
    rows = [entry for entry in scores.classes if entry.images]
    if len(rows) > _MAX_CLASSES:
        click.echo(
            f"The {_MAX_CLASSES} classes with the lowest accuracy (--json prints all {len(rows)}):"
        )
        rows = sorted(rows, key=lambda entry: entry.accuracy or 0)[:_MAX_CLASSES]
    print_table(
        ("class", "images", "accuracy, %", "precision, %", "F1, %"),
        [(entry.name, f"{entry.images:,}", *map(_percent, entry[2:])) for entry in rows],
        right=(1, 2, 3, 4),
    )


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _print_robustness(result: Robustness) -> None:
    extra = [row for row in result.corruptions if not row.in_benchmark]
    known = len(result.corruptions) - len(extra)
    text = (
        f"{_model(result)}: mean accuracy {result.mean_accuracy:.2f} % over "
        f"{known or len(extra)} corruptions and 5 severities, {result.images:,} images each"
    )
    if result.mean_accuracy_plain != result.mean_accuracy:
        text += f"; without test-time augmentation {result.mean_accuracy_plain:.2f} %"
    click.echo(text)
    if known and known != 15:
        click.echo(f"The folder has {known} of the 15 corruptions of the benchmark.")
    if known and extra:
        click.echo(
            f"The mean excludes {counted(len(extra), 'corruption')} (*) that the benchmark lacks. "
            f"The mean over all corruptions is {result.mean_accuracy_all:.2f} %."
        )
    print_table(
        ("corruption / severity", *map(str, range(1, 6)), "mean"),
        [
            (
                row.name + (" *" if known and not row.in_benchmark else ""),
                *(f"{accuracy:.2f}" for accuracy in row.accuracies),
                f"{row.mean:.2f}",
            )
            for row in result.corruptions
        ],
        right=range(1, 7),
    )
