"""The command line, one file a verb. Whatever is heavy is imported by the verb that needs it.

Exit codes: 0 done, 2 the user's error (one line on standard error), 1 a fault, 128 + signal when
stopped by a signal after saving; 141 (SIGPIPE's, as with other tools) when nobody reads on.
"""

from __future__ import annotations

import io
import os
import signal
import sys
import threading
import traceback
from collections.abc import Sequence
from contextlib import suppress
from typing import NoReturn

import click

from cifar_jax.cli import error_messages
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
from cifar_jax.errors import Stopped, UserError


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
    _ready_streams()
    sys.unraisablehook, threading.excepthook = unraisable, in_a_thread
    try:
        code = run(sys.argv[1:])
        sys.stdout.flush()  # here, where its failure can still be told
    except OSError as error:
        code = _explained(error)
    except Exception:
        traceback.print_exc()
        code = 1
    if "jax" in sys.modules:
        from cifar_jax import distributed

        distributed.leave(code)
    if code == 2:  # what was told may fail again on the way out, as an event file on a full disk
        sys.unraisablehook = threading.excepthook = lambda failure: None
    sys.exit(code)


def run(arguments: Sequence[str]) -> int:
    """Run the command line and return its exit code.

    Raises:
      Exception: a fault of the program.
    """
    try:
        cli.main(list(arguments), prog_name="cifar-jax", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return 2
    except click.ClickException as error:
        return _fail(error.format_message(), 2)
    except UserError as error:
        _end_if_alone(error)
        return _fail(str(error), 2)
    except (KeyboardInterrupt, click.Abort):
        return _fail("stopped", 130)
    except Stopped as error:
        return _fail(str(error), 128 + error.signum)
    except SystemExit as error:
        if error.code != 1:
            raise
        return _nobody_reads()  # of which click and rich make this
    except Exception as error:
        _end_if_alone(error)
        return _explained(error)
    return 0


def _fail(message: str, code: int) -> int:
    with suppress(OSError):  # standard error may be what fails
        click.echo(f"cifar-jax: {' '.join(message.split())}", err=True)
    return code


def _explained(error: Exception) -> int:
    """The exit code of what a person can mend, which is told; a fault is raised again."""
    if isinstance(error, OSError) and error_messages.standard_output_fails(error):
        if isinstance(error, BrokenPipeError):
            return _nobody_reads()
        _drop_output()
        return _fail(f"standard output: {error.strerror}: have it written elsewhere", 2)
    if (message := error_messages.explain(error)) is None:
        raise error
    return _fail(message, 2)


def _nobody_reads() -> int:
    _drop_output()
    return 128 + signal.SIGPIPE


def _drop_output() -> None:
    """What could not be written is not tried again at the exit."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)


def _end_if_alone(error: Exception) -> None:
    if "jax" in sys.modules:
        from cifar_jax import distributed

        distributed.end_if_alone(error)


def unraisable(failure: sys.UnraisableHookArgs) -> None:
    """What is raised where nothing can catch it, but for what says nothing to a person.

    A signal may come in a callback, which its exception cannot leave: the run ends soon after.
    orbax's threads meet a closed loop when a checkpoint cannot be read or written, which is told.
    """
    closed = isinstance(failure.exc_value, RuntimeError) and "loop is closed" in str(
        failure.exc_value
    )
    if not closed and not isinstance(failure.exc_value, Stopped):
        sys.__unraisablehook__(failure)


def in_a_thread(failure: threading.ExceptHookArgs) -> None:
    """What ends a thread, but for that which writes TensorBoard's events where it has no room: the
    run goes on without it, and tells of a full disk where it writes itself."""
    of = type(failure.thread).__module__.partition(".")[0]
    if of != "tensorboardX" or not isinstance(failure.exc_value, OSError):
        threading.__excepthook__(failure)


def _ready_streams() -> None:
    """Standard streams that are there, and take every character.

    Of a stream that is closed the number would go to the next file that is opened, and what a
    library prints would go into that: into a checkpoint, say.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
    sys.stdin = sys.stdin or open(0, closefd=False)  # noqa: SIM115
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
