"""The command line, one file a verb. Whatever is heavy is imported by the verb that needs it.

Exit codes: 0 done, 2 the user's error (one line on standard error), 1 a fault, 128 + signal when
stopped by a signal after saving.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import NoReturn

import click

from cifar_jax.cli.data import data
from cifar_jax.cli.evaluate import evaluate
from cifar_jax.cli.experiments import experiments
from cifar_jax.cli.export import export
from cifar_jax.cli.import_torch import import_torch
from cifar_jax.cli.models import models, summary
from cifar_jax.cli.predict import predict
from cifar_jax.cli.report import report
from cifar_jax.cli.settings import settings
from cifar_jax.cli.train import train
from cifar_jax.errors import UserError
from cifar_jax.training.signals import Stopped


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="cifar-jax")
def cli() -> None:
    """The ten experiments of “A New Classifier Based on CIFAR10 Data Set” in JAX and Flax."""


for _verb in (
    train,
    evaluate,
    predict,
    export,
    import_torch,
    models,
    summary,
    experiments,
    settings,
    report,
    data,
):
    cli.add_command(_verb)


def main() -> NoReturn:
    """Run the command line and exit."""
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
