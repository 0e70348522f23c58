"""`cifar-jax experiments`."""

from __future__ import annotations

import json

import click

from cifar_jax.cli.output import AS_JSON, print_table


@click.command(short_help="The experiments and their settings.")
@AS_JSON
def experiments(as_json: bool) -> None:
    """The experiments: model, tables, hyperparameters, and the paper's accuracy."""
    from cifar_jax import catalog, config

    found = [catalog.load(name) for name in catalog.names()]
    if as_json:
        rows = []
        for name, settings, description, *_ in found:
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
    for name, settings, *_ in found:
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
    print_table(columns, cells, right=(3, 5, 7))
