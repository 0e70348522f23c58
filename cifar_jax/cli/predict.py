"""`cifar-jax predict`."""

from __future__ import annotations

import csv
import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cifar_jax import runtime
from cifar_jax.cli.code import CODE, named_code
from cifar_jax.cli.output import AS_JSON
from cifar_jax.errors import UserError

if TYPE_CHECKING:
    from cifar_jax.inference.model import Classifier
    from cifar_jax.training.evaluation import TTA

_BATCH = 256


@click.command(short_help="What a trained model sees in images.")
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("images", nargs=-1, required=True, metavar="IMAGE…")
@click.option(
    "--top", type=click.IntRange(1), default=3, show_default=True, help="Classes to show."
)
@AS_JSON
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV.")
@click.option("--best", is_flag=True, help="The best epoch on validation, instead of the last.")
@click.option(
    "--views", is_flag=True, help="Average over the views of an image that the run was tested with."
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
    """The classes that the model in RUN sees in each IMAGE, with their probabilities.

    RUN is a run's folder, a file that `cifar-jax export` made (safetensors or stablehlo), or the
    name of an experiment whose weights come with the package, such as net-bn-gap. An IMAGE is a
    file of any size and common format, a folder of them, a pattern such as '*.jpg', or - for
    standard input. Of each the largest square in the middle is taken, and resized to 32×32.
    """
    if as_json and as_csv:
        raise UserError("--json or --csv, not both")
    runtime.set_up()
    runtime.require()

    from cifar_jax.inference.images import find
    from cifar_jax.inference.load import load

    model = load(run, best=best, own=named_code(code, run))
    seen = model.views if views else None
    if seen is not None and not (seen.flip or seen.shift):
        raise UserError(f"{run} was tested with images as they are: leave --views out")
    names = find(images)
    rows = []
    bad = 0
    for row in _answers(model, names, top, seen):
        rows.append(row)
        if "error" in row:
            bad += 1
            click.echo(f"cifar-jax: {' '.join(row['error'].split())}", err=True)
    if as_json:
        click.echo(json.dumps(rows, indent=2, ensure_ascii=False))
    elif as_csv:
        _print_csv(rows)
    else:
        _print_table([row for row in rows if "error" not in row])
    if bad:
        raise UserError(f"{bad} of {len(rows)} could not be read")


def _answers(
    model: Classifier, names: Any, top: int, views: TTA | None
) -> Iterator[dict[str, Any]]:
    """An object for each image, in their order."""
    import numpy as np

    from cifar_jax.data.progress import progress
    from cifar_jax.inference.images import read

    def answers(advance: Any) -> Iterator[dict[str, Any]]:
        images = read(names)
        while batch := list(itertools.islice(images, _BATCH)):
            good = [image.pixels for image in batch if image.pixels is not None]
            found = iter(model.predict(np.stack(good), views) if good else ())
            for image in batch:
                if image.pixels is None:
                    yield {"image": image.name, "error": image.error}
                    continue
                odds = next(found)
                best = np.argsort(-odds, kind="stable")[:top]
                yield {
                    "image": image.name,
                    "top": [
                        {"class": model.classes[i], "probability": float(odds[i])} for i in best
                    ],
                }
            advance(len(batch))

    if len(names) <= _BATCH:
        yield from answers(lambda count: None)
        return
    with progress("Predicting", len(names)) as advance:
        yield from answers(advance)


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
            odds = answer["probability"]
            table.add_row(
                Text(row["image"] if rank == 0 else ""),
                Text(answer["class"], style="" if rank else "bold"),
                f"{100 * odds:.1f} %",
                Bar(1, 0, odds, color="cyan" if rank else "green"),
                end_section=rank + 1 == len(row["top"]),
            )
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=10_000)  # nothing is folded
    console.print(table)
