"""The command line. Whatever is heavy is imported by the command that needs it.

Exit codes: 0 done, 2 the user's error (one line on standard error), 1 a fault, 128 + signal when
stopped by a signal after saving.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from cifar_jax import process
from cifar_jax.errors import UserError
from cifar_jax.signals import Stopped

if TYPE_CHECKING:
    from cifar_jax.data import ImportResult

RUNS = Path("runs")
_AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="cifar-jax")
def cli() -> None:
    """The ten experiments of “A New Classifier Based on CIFAR10 Data Set” in JAX and Flax."""


@cli.command(short_help="Train an experiment, or go on with it.")
@click.argument("experiment")
@click.option(
    "--workdir",
    type=click.Path(path_type=Path),
    help="The run's folder; with --seeds, that of the seeds' folders.  [runs/EXPERIMENT/seedN]",
)
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), help="Of all that is random.  [0]")
@click.option("--seeds", type=click.IntRange(1), help="Train seeds 0 to N-1, one after the other.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Override a setting.")
@click.option("--fresh", is_flag=True, help="Delete the run that is in the folder, and train anew.")
@click.option(
    "--distributed",
    is_flag=True,
    help="Be one of several processes, as JAX_COORDINATOR_ADDRESS, SLURM or a TPU slice say.",
)
def train(
    experiment: str,
    workdir: Path | None,
    seed: int | None,
    seeds: int | None,
    settings: Sequence[str],
    fresh: bool,
    distributed: bool,
) -> None:
    """Train EXPERIMENT, a name or a config file; go on where an earlier start stopped.

    --set reaches every setting by its dotted name, such as --set optimizer.lr=3e-4
    --set data.dataset=digits --set epochs=2; `cifar-jax experiments --json` lists them.
    """
    from cifar_jax import catalog, config

    if seed is not None and seeds is not None:
        raise UserError("--seed and --seeds exclude each other")
    found = catalog.load(experiment)
    overridden = config.override(found.config, settings)
    changes = config.differences(config.flatten(found.config), config.flatten(overridden))

    from cifar_jax import mesh
    from cifar_jax.display import Display
    from cifar_jax.fit import Run, fit

    process.configure_jax()
    if distributed or "JAX_COORDINATOR_ADDRESS" in os.environ:
        mesh.initialize_distributed()
    display = Display(quiet=not mesh.is_first())
    for number in range(seeds) if seeds else [seed or 0]:
        folder = workdir or RUNS / found.name
        run = Run(
            experiment=found.name,
            config=overridden,
            seed=number,
            workdir=folder if workdir and not seeds else folder / f"seed{number}",
            overrides={name: value for name, (_, value) in changes.items()},
            fresh=fresh,
        )
        display.note(_result_line(fit(run, display)))


@cli.command(short_help="Loss and accuracy of a run over a split.")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--split", type=click.Choice(["train", "validation", "test"]), default="test")
@click.option("--best", is_flag=True, help="The best epoch on validation, instead of the last.")
@_AS_JSON
def evaluate(run: Path, split: str, best: bool, as_json: bool) -> None:
    """Loss and accuracy of the run in folder RUN, over a whole split."""
    from cifar_jax.evaluate import evaluate

    process.configure_jax()
    found = evaluate(run, split, best)
    if as_json:
        click.echo(json.dumps(found, indent=2))
    else:
        click.echo(
            f"{found['experiment']} seed {found['seed']}, epoch {found['epoch']}: {split} accuracy "
            f"{found['accuracy']:.2f} %, loss {found['loss']:.4f}, over {found['images']} images"
        )


@cli.command()
@_AS_JSON
def models(as_json: bool) -> None:
    """The networks: their parameters, and the paper's count."""
    from cifar_jax import models

    rows = []
    for name in models.MODELS:
        shapes = models.variable_shapes(models.create(name))
        parameters = models.count_parameters(shapes["params"])
        paper = models.PAPER_PARAMETERS.get(name)
        rows.append({"name": name, "parameters": parameters, "paper_parameters": paper})
    if as_json:
        click.echo(json.dumps(rows, indent=2))
    else:
        cells = [
            (row["name"], _count(row["parameters"]), _count(row["paper_parameters"]))
            for row in rows
        ]
        _print_table(("Model", "Parameters", "Paper"), cells, right=(1, 2))


@cli.command(short_help="The layers of a network, as in the paper's tables.")
@click.argument("model")
@_AS_JSON
def summary(model: str, as_json: bool) -> None:
    """The layers of MODEL, in the columns of the paper's tables."""
    from cifar_jax import models
    from cifar_jax.models.summary import summarise

    layers = summarise(models.create(model))
    if as_json:
        click.echo(json.dumps([layer._asdict() for layer in layers], indent=2))
        return
    cells = [(*layer[:3], *map(_count, layer[3:])) for layer in layers]
    totals = [sum(column) for column in zip(*(layer[3:] for layer in layers), strict=True)]
    cells.append(("total", "", "", *map(_count, totals)))
    columns = ("Layer Name", "Output Size", "Layer Configuration", "Parameters", "Multiply-adds")
    _print_table(columns, cells, right=(3, 4))


@cli.command(short_help="The experiments and their settings.")
@_AS_JSON
def experiments(as_json: bool) -> None:
    """The experiments: model, tables, hyperparameters, and the paper's accuracy."""
    from cifar_jax import catalog, config

    found = [catalog.load(name) for name in catalog.names()]
    if as_json:
        rows = []
        for name, settings, description in found:
            paper = settings.paper
            rows.append(
                {
                    "name": name,
                    "description": description,
                    "model": settings.model.name,
                    "tables": paper.tables if paper else None,
                    "paper_accuracy": paper.test_accuracy if paper else None,
                    "paper_parameters": paper.parameters if paper else None,
                    "settings": config.flatten(settings),
                }
            )
        click.echo(json.dumps(rows, indent=2, ensure_ascii=False))
        return
    cells = []
    for name, settings, _ in found:
        optimizer, paper = settings.optimizer, settings.paper
        plateau = ", plateau" if settings.schedule.name == "plateau" else ""
        cells.append(
            (
                name,
                settings.model.name,
                paper.tables if paper else "",
                str(settings.epochs),
                f"{optimizer.lr:g}{plateau}",
                str(settings.batch_size),
                optimizer.name,
                f"{paper.test_accuracy:.2f}" if paper else "",
            )
        )
    columns = ("Experiment", "Model", "Tables", "Epochs", "LR", "Batch", "Optimizer", "Paper %")
    _print_table(columns, cells, right=(3, 5, 7))


@cli.command(short_help="The paper against what was measured.")
@click.argument("runs", nargs=-1, type=click.Path(path_type=Path))
@click.option(
    "--output", type=click.Path(path_type=Path), help="Where report.md and curves/ are written."
)
@click.option(
    "--record",
    "records",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Instead, copy the results of RUNS into FOLDER, as records.",
)
@click.option(
    "--readme",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    metavar="FILE",
    help="Instead, renew the table in FILE from results/ beside it.",
)
def report(
    runs: Sequence[Path], output: Path | None, records: Path | None, readme: Path | None
) -> None:
    """Print the paper against what was measured, and write report.md with curves.

    RUNS are folders of runs, or folders with some at any depth; without any, runs/.
    """
    from cifar_jax import report

    if records and not runs:
        raise UserError("--record needs the run folders that it is to record")
    if records:
        for folder in runs:
            click.echo(f"recorded {report.record(folder, records)}")
    elif readme:
        changed = report.update_readme(readme, readme.parent / "results")
        click.echo(f"{readme} {'renewed' if changed else 'was current'}")
    elif written := report.report(runs, folder=output):
        click.echo(f"written to {written}")


@cli.group()
def data() -> None:
    """The CIFAR-10 images: what is there, and how to get them."""


@data.command()
def status() -> None:
    """Where data is looked for, and what is there."""
    from cifar_jax.data import status

    click.echo(status())


@data.command()
def prepare() -> None:
    """Download the official archive and prepare it."""
    from cifar_jax.data import default_data_dir, prepare

    _print_import(prepare(default_data_dir()))


@data.command("import", short_help="Prepare it from an archive or a folder.")
@click.argument("path", type=click.Path(path_type=Path))
def import_(path: Path) -> None:
    """Prepare CIFAR-10 offline from PATH.

    PATH is the official python or binary archive, packed or unpacked, or a folder with
    train/CLASS/*.png|jpg and test/CLASS/*.
    """
    from cifar_jax.data import default_data_dir, import_path

    _print_import(import_path(path, default_data_dir()))


def main() -> NoReturn:
    """Run the command line and exit."""
    if sys.argv[1:2] in (["train"], ["evaluate"]):
        process.keep_memory()
    # What XLA and TensorFlow's C++ say of themselves at the start is no news to a user.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run the command line and return its exit code."""
    try:
        cli.main(list(arguments), prog_name="cifar-jax", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return 2
    except click.ClickException as error:
        return _fail(error.format_message(), 2)
    except UserError as error:
        return _fail(str(error), 2)
    except (KeyboardInterrupt, click.Abort):
        return _fail("stopped", 130)
    except Stopped as error:
        return _fail(str(error), 128 + error.signum)
    return 0


def _fail(message: str, code: int) -> int:
    click.echo(f"cifar-jax: {' '.join(message.split())}", err=True)
    return code


def _result_line(result: dict[str, Any]) -> str:
    paper = result["paper_accuracy"]
    beside = f" (the paper: {paper:.2f} %)" if paper and not result["overrides"] else ""
    best = result["best_validation_epoch"]
    also = (
        f"; {result['best_validation_test_accuracy']:.2f} % at the best validation, epoch {best}"
        if best not in (None, result["epochs"])
        else ""
    )
    return (
        f"{result['experiment']} seed {result['seed']}: test accuracy "
        f"{result['test_accuracy']:.2f} %{beside}{also}"
    )


def _print_import(result: ImportResult) -> None:
    counts = ", ".join(f"{count} {split}" for split, count in result.counts.items())
    click.echo(f"{result.recognised}: {counts} images")
    click.echo(f"official: {result.official or 'no'}")
    for remark in result.remarks:
        click.echo(remark)
    click.echo(f"written to {result.path}")


def _count(value: int | None) -> str:
    return f"{value:,}" if value else "-"


def _print_table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()
) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(
            column, justify="right" if number in right else "left", no_wrap=True, overflow="fold"
        )
    for row in rows:
        table.add_row(*row)
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=200)  # into a file or a pipe nothing is cut
    console.print(table)
