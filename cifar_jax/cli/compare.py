"""The command `cifar-jax compare`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cifar_jax.cli.output import AS_JSON, LocalPath
from cifar_jax.errors import UserError

if TYPE_CHECKING:
    from cifar_jax.report.compare import Comparison, Spread


@click.command(short_help="Compare two experiments over the same seeds.")
@click.argument("a")
@click.argument("b")
@click.option(
    "--runs",
    "folder",
    type=LocalPath(file_okay=False),
    default="runs",
    show_default=True,
    metavar="FOLDER",
    help="Folder with the runs or records of A and B.",
)
@click.option(
    "--validation",
    is_flag=True,
    help="Compare the validation accuracy after the last epoch instead of the test accuracy.",
)
@AS_JSON
def compare(a: str, b: str, folder: Path, validation: bool, as_json: bool) -> None:
    """Compare the accuracy of two experiments that were trained with the same seeds.

    A and B each name an experiment, such as net-bn-gap, or a folder with the runs of one setting,
    such as runs/net@lr=0.01. The output has the mean difference with its 95 % bootstrap interval,
    a sign-flip test, and the spread over the seeds.
    """
    from cifar_jax.report import compare as report

    groups = report.find_group(a, folder), report.find_group(b, folder)
    metric = "validation_accuracy" if validation else "test_accuracy"
    result = report.compare(*groups, metric)
    if len(result.seeds) == 1:
        raise UserError(
            f"{a} and {b} have only seed {result.seeds[0]} in common, so the spread over the seeds "
            "is unknown. Train both with `--seeds 2` or more."
        )
    for group in groups:
        for sentence in report.repeated_seeds(group, result.seeds):
            click.echo(sentence, err=True)
    titles = tuple(report.title(group) for group in groups)
    if as_json:
        import json

        click.echo(json.dumps(_content(result, titles, metric), indent=2))
    else:
        _print(result, titles, metric)


def _content(result: Comparison, titles: tuple[str, ...], metric: str) -> dict[str, Any]:
    spreads = {"spread_a": result.spread_a, "spread_b": result.spread_b}
    content = {"metric": metric, "names": titles, **result._asdict(), "verdict": result.verdict}
    return content | {name: value and value._asdict() for name, value in spreads.items()}


def _print(result: Comparison, titles: tuple[str, ...], metric: str) -> None:
    from cifar_jax.cli.output import print_table
    from cifar_jax.report.table import mean_std

    for letter, title in zip("AB", titles, strict=True):
        click.echo(f"{letter}: {title}")
    click.echo(f"\n{metric.replace('_', ' ').capitalize()} after the last epoch, %")
    rows = [
        (str(seed), f"{x:.2f}", f"{y:.2f}", f"{y - x:+.2f}")
        for seed, x, y in zip(result.seeds, result.a, result.b, strict=True)
    ]
    mean = ("mean", mean_std(result.a), mean_std(result.b), f"{result.difference:+.2f}")
    print_table(("seed", "A", "B", "B − A"), [*rows, mean], right=(1, 2, 3))
    click.echo(
        f"Difference B − A: {result.difference:+.2f} points, 95 % interval {result.low:+.2f} to "
        f"{result.high:+.2f} (BCa bootstrap over {len(result.seeds)} seeds)"
    )
    click.echo(f"Sign-flip test: p = {result.p_value:.3g}")
    if result.test_error is not None:
        click.echo(
            f"Standard error from the choice of the test images: {result.test_error:.2f} points"
        )
    for letter, spread in zip("AB", (result.spread_a, result.spread_b), strict=True):
        if spread:
            click.echo(f"Standard deviation over the seeds of {letter}: {_spread(spread)}")
    if None in (result.spread_a, result.spread_b) and metric == "test_accuracy":
        click.echo(
            "The causes of the spread over the seeds are known only if all runs have stored test "
            "outputs."
        )
    click.echo(f"\n{result.verdict}")


def _spread(spread: Spread) -> str:
    return (
        f"{spread.total:.2f}, of which {spread.test_set:.2f} from the finite test set and "
        f"{spread.training:.2f} from training"
    )
