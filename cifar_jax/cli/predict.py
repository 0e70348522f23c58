"""The command `cifar-jax predict`."""

from __future__ import annotations

import csv
import itertools
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cifar_jax import runtime
from cifar_jax.cli.code import CODE, load_code
from cifar_jax.cli.output import AS_JSON, LocalPath, WholeNumber
from cifar_jax.errors import UserError, counted

if TYPE_CHECKING:
    from cifar_jax.inference.images import Image
    from cifar_jax.inference.model import Classifier
    from cifar_jax.training.evaluation import TTA

_BATCH = 256


@click.command(short_help="Classify images with a trained model.")
@click.argument("run", type=LocalPath())
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...")
@click.option("--top", type=WholeNumber(1), default=3, show_default=True, help="Classes to print.")
@AS_JSON
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV.")
@click.option("--best", is_flag=True, help="Use the epoch with the best validation metric.")
@click.option(
    "--views", is_flag=True, help="Average over the views of the run's test-time augmentation."
)
@CODE
def predict(
    run: Path,
    images: tuple[str, ...],
    top: int,
    as_json: bool,
    as_csv: bool,
    best: bool,
    views: bool,
    code: Path | None,
) -> None:
    """Print the most probable classes of each IMAGE.

    RUN is a run folder, a file of `cifar-jax export` (safetensors or stablehlo), or the name of a
    packaged network, such as net-bn-gap. An IMAGE is an image file, a folder of image files, a
    pattern such as '*.jpg', or - for standard input. Images may have any size and any common
    format. The largest centered square of each image is resized to the size of the training
    images. If RUN was trained with data.center_crop=false, the whole image is resized.
    """
    if as_json and as_csv:
        raise UserError("--json and --csv cannot be combined: choose one")
    runtime.set_up()
    runtime.require()

    from cifar_jax.data.progress import progress
    from cifar_jax.inference.images import find, read
    from cifar_jax.inference.load import load

    model = load(run, best=best, custom=load_code(code, run))
    tta = model.tta if views else None
    if tta and not (tta.flip or tta.shift):
        raise UserError(
            f"--views has no effect, because {run} uses no test-time augmentation: leave out "
            "--views"
        )
    files = find(images)
    pixels = read(files, model.card.white, model.target)
    if len(files) <= _BATCH:
        rows = list(_rows(model, pixels, top, tta))
    else:
        with progress("Predicting", len(files)) as advance:
            rows = list(_rows(model, pixels, top, tta, advance))
    errors = [row["error"] for row in rows if "error" in row]
    for error in errors if len(rows) > 1 else ():
        click.echo(f"cifar-jax: {' '.join(error.split())}", err=True)
    if as_json:
        click.echo(json.dumps(rows, indent=2, ensure_ascii=False))
    elif as_csv:
        _print_csv(rows)
    else:
        _print_table([row for row in rows if "error" not in row])
    if len(rows) > 1 and errors:
        raise UserError(
            f"{len(errors):,} of {counted(len(rows), 'input')} cannot be classified (see above)"
        )
    if errors:
        raise UserError(errors[0])


def _rows(
    model: Classifier,
    images: Iterator[Image],
    top: int,
    tta: TTA | None,
    advance: Callable[[int], object] = lambda count: None,
) -> Iterator[dict[str, Any]]:
    """Yield a JSON object with the predictions of each image, in the order of the images."""
    import numpy as np

    while batch := list(itertools.islice(images, _BATCH)):
        pixels = [image.pixels for image in batch if image.pixels is not None]
        probabilities = iter(model.predict(np.stack(pixels), tta) if pixels else ())
        for image in batch:
            if image.pixels is None:
                yield {"image": image.name, "error": image.error}
            else:
                answers = _top(model.classes, next(probabilities), top)
                yield {"image": image.name, "top": answers}
        advance(len(batch))


def _top(classes: Sequence[str], probabilities: Any, top: int) -> list[dict[str, Any]]:
    order = (-probabilities).argsort(kind="stable")[:top]
    return [{"class": classes[i], "probability": float(probabilities[i])} for i in order]


def _print_csv(rows: list[dict[str, Any]]) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(("image", "rank", "class", "probability", "error"))
    for row in rows:
        if "error" in row:
            writer.writerow((row["image"], "", "", "", row["error"]))
        for rank, answer in enumerate(row.get("top", ()), start=1):
            writer.writerow(
                (row["image"], rank, answer["class"], f"{answer['probability']:.6f}", "")
            )


def _print_table(rows: list[dict[str, Any]]) -> None:
    from rich import box
    from rich.bar import Bar
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    if not rows:
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("Image", overflow="fold")
    table.add_column("Class", no_wrap=True)
    table.add_column("", justify="right", no_wrap=True)
    table.add_column("", width=24, no_wrap=True)
    for row in rows:
        for rank, answer in enumerate(row["top"]):
            probability = answer["probability"]
            table.add_row(
                Text(row["image"] if rank == 0 else ""),
                Text(answer["class"], style="" if rank else "bold"),
                f"{100 * probability:.1f} %",
                Bar(1, 0, probability, color="cyan" if rank else "green"),
                end_section=rank + 1 == len(row["top"]),
            )
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=10_000)  # Do not wrap output to a file or pipe.
    console.print(table)
