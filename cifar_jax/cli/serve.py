"""The command `cifar-jax serve`."""

from __future__ import annotations

import socket
from pathlib import Path

import click

from cifar_jax import runtime
from cifar_jax.cli.code import CODE, load_code
from cifar_jax.cli.output import LocalPath
from cifar_jax.errors import UserError

_ADDRESS = "127.0.0.1"


@click.command(short_help="Classify pictures on a local web page.")
@click.argument("run", type=LocalPath())
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8000,
    show_default=True,
    help="Port of the web page. 0: any free port.",
)
@click.option("--best", is_flag=True, help="Use the epoch with the best validation metric.")
@CODE
def serve(run: Path, port: int, best: bool, code: Path | None) -> None:
    """Serve a local web page that classifies the pictures that you drop on it.

    RUN is a run folder, a file of `cifar-jax export` (safetensors or stablehlo), or the name of a
    packaged network, such as net-bn-gap. Only this computer can open the page. Ctrl-C ends the
    command. The command needs optional packages: pip install 'cifar-jax[serve]'.
    """
    try:
        import uvicorn
        from starlette.applications import Starlette  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"the package {error.name} is missing: pip install 'cifar-jax[serve]'"
        ) from None
    runtime.set_up()
    runtime.require()

    from cifar_jax.inference.load import load
    from cifar_jax.inference.server import application

    with _listen(port) as listener:
        model = load(run, best=best, custom=load_code(code, run))
        app = application(model, str(run))
        where = f"http://{_ADDRESS}:{listener.getsockname()[1]}"
        click.echo(f"{run} is served at {where}. Ctrl-C stops the server.")
        config = uvicorn.Config(app, log_level="error")
        uvicorn.Server(config).run(sockets=[listener])


def _listen(port: int) -> socket.socket:
    """Return a socket that listens at a port.

    Raises:
      UserError: the port is in use or not allowed.
    """
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((_ADDRESS, port))
    except OSError as error:
        listener.close()
        raise UserError(
            f"port {port} cannot be used: {error.strerror}. Choose another port with --port, or "
            "use --port 0 for any free port."
        ) from None
    listener.listen()
    return listener
