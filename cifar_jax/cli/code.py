"""A model that an experiment file defines: whose Python is run because a person names the file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from cifar_jax import catalog
from cifar_jax.errors import UserError

if TYPE_CHECKING:
    from cifar_jax.models import CustomModel

CODE = click.option(
    "--code",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The config file that defines RUN's model, where that is one of your own. Its Python is "
    "run, so name a file that you trust.",
)


def own_model(experiment: catalog.Experiment) -> CustomModel | None:
    """The experiment's `MODEL`; None where its network is one of the package's.

    Raises:
      UserError: it is no module that can be trained, or named as one of the package's.
    """
    if experiment.model is None:
        return None
    from cifar_jax.models import MODELS, CustomModel

    path, name = experiment.path, experiment.config.model.name
    if name in MODELS:
        raise UserError(
            f"{path} has a MODEL, but its CONFIG names the package's {name!r}: "
            "give it another name, such as Model(name='mine')"
        )
    return CustomModel(experiment.model, name, path, path.read_bytes())


def named_code(code: Path | None, run: Path) -> CustomModel | None:
    """The model that the file `code` defines; that it is not the one of `run`, is told.

    Raises:
      UserError: it defines none.
    """
    if code is None:
        return None
    own = own_model(catalog.load(str(code)))
    if own is None:
        raise UserError(f"{code} has no MODEL: name the file that defines it")
    from cifar_jax.runs.folder import Workdir

    copy = Workdir(run).code
    if copy.is_file() and not catalog.same_model(copy.read_bytes(), own.source):
        click.echo(
            f"cifar-jax: {code} defines the model otherwise than {copy}, with which it was trained",
            err=True,
        )
    return own
