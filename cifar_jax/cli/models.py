"""The commands `cifar-jax models` and `cifar-jax summary`."""

from __future__ import annotations

import json
from dataclasses import asdict

import click

from cifar_jax import runtime
from cifar_jax.cli.code import custom_model
from cifar_jax.cli.output import AS_JSON, count, print_table


@click.command()
@AS_JSON
def models(as_json: bool) -> None:
    """List the networks, with their number of parameters here and in the paper."""
    runtime.set_up()
    runtime.require("cpu")  # The CPU is sufficient for shapes.

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


@click.command(short_help="Print the layers of a network, as in the paper's tables.")
@click.argument("model")
@AS_JSON
def summary(model: str, as_json: bool) -> None:
    """Print the layers of MODEL in the columns of the paper's tables.

    MODEL is a name from `cifar-jax models`, or a config file (FILE.py) that contains the model.
    """
    runtime.set_up()
    runtime.require("cpu")  # The CPU is sufficient for shapes.

    from cifar_jax import catalog, models
    from cifar_jax.models.summary import Layer, summarize

    if model.endswith(".py"):
        experiment = catalog.load(model)
        options = experiment.config.model.model_dump()
        options |= options.pop("arguments", {})
        images = experiment.config.data.dataset
        if images == "cifar100":
            options["num_classes"] = 100
        elif images not in ("cifar10", "digits"):
            click.echo(f"assumed: 10 classes, because {images} is not read", err=True)
        network = models.create(options.pop("name"), custom_model(experiment), **options)
        rows = summarize(network, experiment.config.data.image_size)
    else:
        rows = summarize(models.create(model))
    if as_json:
        click.echo(json.dumps([asdict(row) for row in rows], indent=2))
        return
    parameters = sum(row.parameters for row in rows)
    multiply_adds = sum(row.multiply_adds for row in rows)
    cells = [
        (r.name, r.output_size, r.configuration, count(r.parameters), count(r.multiply_adds))
        for r in [*rows, Layer("total", "", "", parameters, multiply_adds)]
    ]
    columns = ("Layer Name", "Output Size", "Layer Configuration", "Parameters", "Multiply-adds")
    print_table(columns, cells, right=(3, 4))
