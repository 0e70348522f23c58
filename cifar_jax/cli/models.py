"""`cifar-jax models` and `cifar-jax summary`."""

from __future__ import annotations

import json

import click

from cifar_jax import runtime
from cifar_jax.cli.code import custom_model
from cifar_jax.cli.output import AS_JSON, count, print_table


@click.command()
@AS_JSON
def models(as_json: bool) -> None:
    """The networks: their parameters, and the paper's count."""
    runtime.set_up()
    runtime.require("cpu")  # no device has work here

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
            (row["name"], count(row["parameters"]), count(row["paper_parameters"])) for row in rows
        ]
        print_table(("Model", "Parameters", "Paper"), cells, right=(1, 2))


@click.command(short_help="The layers of a network, as in the paper's tables.")
@click.argument("model")
@AS_JSON
def summary(model: str, as_json: bool) -> None:
    """The layers of MODEL, in the columns of the paper's tables.

    MODEL is a name of `cifar-jax models`, or a config file, whose model it then is.
    """
    runtime.set_up()
    runtime.require("cpu")  # no device has work here

    from cifar_jax import catalog, models
    from cifar_jax.models.summary import summarise

    if model.endswith(".py"):
        experiment = catalog.load(model)
        options = experiment.config.model.model_dump()
        network = models.create(options.pop("name"), custom_model(experiment), **options)
    else:
        network = models.create(model)
    layers = summarise(network)
    if as_json:
        click.echo(json.dumps([layer._asdict() for layer in layers], indent=2))
        return
    cells = [(*layer[:3], *map(count, layer[3:])) for layer in layers]
    totals = [sum(column) for column in zip(*(layer[3:] for layer in layers), strict=True)]
    cells.append(("total", "", "", *map(count, totals)))
    columns = ("Layer Name", "Output Size", "Layer Configuration", "Parameters", "Multiply-adds")
    print_table(columns, cells, right=(3, 4))
