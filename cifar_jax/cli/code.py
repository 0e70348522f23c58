"""The option `--code`: the experiment file that defines a run's custom model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from cifar_jax import catalog
from cifar_jax.cli.output import LocalPath
from cifar_jax.errors import UserError

if TYPE_CHECKING:
    from cifar_jax.models import CustomModel

CODE = click.option(
    "--code",
    type=LocalPath(),
    metavar="FILE",
    help="Experiment file that defines the custom model of RUN. The file is executed, so name only "
    "a file that you trust.",
)


def custom_model(experiment: catalog.Experiment) -> CustomModel | None:
    """Return the custom model that an experiment file defines, or None if it defines none.

    Raises:
      UserError: the custom model cannot be trained, or has the name of one of the package's
        networks.
    """
    parts = experiment.custom
    if parts is None or parts.model is None:
        return None
    from cifar_jax.models import CustomModel, check_custom_name

    name = experiment.config.model.name
    check_custom_name(name, experiment.path)
    size = experiment.config.data.image_size
    return CustomModel(parts.model, name, parts.file, parts.source, size)


def load_code(code: Path | None, run: Path) -> CustomModel | None:
    """Return the custom model in the file of the option `--code`, or None without this option.

    A warning is printed if the run was trained with other code.

    Raises:
      UserError: the file defines no `MODEL`.
    """
    if code is None:
        return None
    experiment = catalog.load(str(code))
    model, parts = custom_model(experiment), experiment.custom
    if model is None or parts is None:
        raise UserError(f"{code} defines no MODEL: give --code the file that defines the network")
    from cifar_jax.runs.folder import RunFolder

    folder = RunFolder(run)
    copy, card = folder.code, folder.card()
    changed = copy.is_file() and catalog.code_digest(copy.read_bytes()) != catalog.code_digest(
        parts.source
    )
    # A run may import further modules later, so compare only the modules that both have.
    modules = card.code.modules if card and card.code else {}
    changed = changed or any(parts.modules.get(n, d) != d for n, d in modules.items())
    if changed:
        click.echo(
            f"cifar-jax: warning: {code} differs from the code that {run} was trained with",
            err=True,
        )
    return model
