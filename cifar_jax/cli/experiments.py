"""The command `cifar-jax experiments`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from cifar_jax.cli.output import AS_JSON, print_table

if TYPE_CHECKING:
    from cifar_jax.catalog import Cost, Experiment

_TITLES = ("Experiments of the paper", "Better recipes", "Variants of the paper's experiments")


@click.command(short_help="List the experiments and their settings.")
@AS_JSON
def experiments(as_json: bool) -> None:
    """List the experiments: network, hyperparameters, paper accuracy, and training time.

    The groups are the paper's experiments, better recipes, and variants of the paper's experiments.
    The training time applies to the machine in the last column. A ~ marks an approximate time.
    """
    from cifar_jax import catalog, config

    loaded = [catalog.load(name) for name in catalog.names()]
    if as_json:
        rows = []
        for experiment in loaded:
            paper = experiment.config.paper
            rows.append(
                {
                    "name": experiment.name,
                    "group": _group(experiment),
                    "varies": experiment.config.varies,
                    "description": experiment.description,
                    "model": experiment.config.model.name,
                    "tables": paper.tables if paper else None,
                    "paper_accuracy": paper.test_accuracy if paper else None,
                    "paper_parameters": paper.parameters if paper else None,
                    "minutes": experiment.cost.minutes if experiment.cost else None,
                    "machine": experiment.cost.machine if experiment.cost else None,
                    "settings": config.flatten(experiment.config),
                }
            )
        click.echo(json.dumps(rows, indent=2, ensure_ascii=False))
        return
    for title in _TITLES:
        click.echo(f"{title}:")
        _print([experiment for experiment in loaded if _group(experiment) == title])


def _group(experiment: Experiment) -> str:
    """Return the title of the group that an experiment belongs to."""
    if experiment.config.paper:
        return _TITLES[0]
    return _TITLES[2] if experiment.config.varies else _TITLES[1]


def _print(experiments: Sequence[Experiment]) -> None:
    cells = []
    for experiment in experiments:
        run = experiment.config
        plateau = ", plateau" if run.schedule.name == "plateau" else ""
        cells.append(
            (
                experiment.name,
                run.model.name,
                run.paper.tables if run.paper else "",
                str(run.epochs),
                f"{run.optimizer.lr:g}{plateau}",
                str(run.batch_size),
                run.optimizer.name,
                f"{run.paper.test_accuracy:.2f}" if run.paper else "",
                _minutes(experiment.cost),
                experiment.cost.machine if experiment.cost else "",
            )
        )
    columns = ("Experiment", "Model", "Tables", "Epochs", "LR", "Batch", "Optimizer", "Paper %")
    columns = (*columns, "Minutes", "Machine")
    shown = [index for index in range(len(columns)) if any(row[index] for row in cells)]
    print_table(
        [columns[index] for index in shown],
        [[row[index] for index in shown] for row in cells],
        right=[shown.index(index) for index in (3, 5, 7, 8) if index in shown],
    )


def _minutes(cost: Cost | None) -> str:
    """Return the training time in minutes as text. `~` marks an approximate time."""
    if cost is None:
        return ""
    return f"{'~' * cost.text.startswith('about')}{cost.minutes:.2g}"
