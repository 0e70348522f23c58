"""The command line `cifar-jax`. A command's module is imported only when the command is called.

Exit codes:

    0              success
    1              a bug, with a traceback
    2              a user error, with one line on standard error
    128 + signal   stopped by a signal
"""

from __future__ import annotations

import io
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

import click

from cifar_jax.errors import Stopped, explain

_COMMANDS = {
    "train": "Train experiments, or continue them.",
    "tune": "Search for better settings of an experiment.",
    "evaluate": "Print loss and accuracy of a run.",
    "predict": "Classify images.",
    "serve": "Classify pictures on a local web page.",
    "export": "Write a trained model as one file.",
    "import-torch": "Convert a PyTorch checkpoint to a run folder.",
    "runs": "List the runs and their state.",
    "report": "Compare results with the paper.",
    "compare": "Compare two experiments over the same seeds.",
    "claims": "Test the conclusions of the paper.",
    "models": "List the networks.",
    "summary": "Print the layers of a network.",
    "experiments": "List the experiments.",
    "settings": "List the settings.",
    "data": "Download, import or check CIFAR-10.",
    "env": "Print versions, devices and settings for a bug report.",
}
_MODULES = {"summary": "models"}
"""Maps a command to its module. A command that is missing here has a module of the same name."""


class _LazyGroup(click.Group):
    """Imports the module of a command only when the command is called. This keeps `--help` fast."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        name = cmd_name.replace("-", "_")
        return getattr(import_module(f"cifar_jax.cli.{_MODULES.get(name, name)}"), name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="cifar-jax")
def cli() -> None:
    """Train and use the networks of “A New Classifier Based on CIFAR10 Data Set”."""


def main() -> NoReturn:
    """Run the command line and exit."""
    _open_standard_streams()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # Hide start-up messages of XLA.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # Print ? for unsupported characters.
    hide_background_errors()
    try:
        code = run(sys.argv[1:])
    except Exception:
        traceback.print_exc()
        code = 1
    if "jax" in sys.modules:
        from cifar_jax import distributed

        distributed.shutdown(code)
    sys.exit(code)


def run(arguments: Sequence[str]) -> int:
    """Run the command line and return its exit code.

    Raises:
      Exception: the program has a bug.
    """
    try:
        cli.main(list(arguments), prog_name="cifar-jax", standalone_mode=False)
        print(end="", flush=True)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return 2
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else "cifar-jax"
        message = error.format_message()
        end = "" if message.endswith((".", "?")) else "."
        return _fail(f"{message}{end} See `{command} --help`.", 2)
    except click.ClickException as error:
        return _fail(error.format_message(), 2)
    except (BrokenPipeError, SystemExit) as error:
        if getattr(error, "code", 1) != 1:
            raise
        # The program that reads this output has ended, for example `head` in a pipe. In this case,
        # click and rich raise SystemExit(1).
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 128 + signal.SIGPIPE
    except (KeyboardInterrupt, click.Abort):
        return _fail("stopped", 128 + signal.SIGINT)
    except Stopped as error:
        return _fail(str(error), 128 + error.signum)
    except Exception as error:
        if (message := explain(error)) is None:
            raise
        return _fail(message, 2)
    return 0


def _fail(message: str, code: int) -> int:
    click.echo(f"cifar-jax: {' '.join(message.split())}", err=True)
    return code


def _open_standard_streams() -> None:
    """Open the null device for each standard stream that is closed.

    Otherwise the next opened file would get the descriptor of the closed stream, and messages would
    be written into this file.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # This opens `number`, the lowest free descriptor.


def hide_background_errors() -> None:
    """Hide tracebacks of background tasks whose failure the main thread reports as well."""

    def unraisable(failure: sys.UnraisableHookArgs) -> None:
        # Hide the errors of orbax's event loops after a signal or a damaged checkpoint.
        error, place = failure.exc_value, getattr(failure.object, "__module__", None)
        in_loop = "loop is closed" in str(error) or str(place).startswith("asyncio")
        if not isinstance(error, Stopped) and not in_loop:
            sys.__unraisablehook__(failure)

    sys.unraisablehook = unraisable
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
