"""The command `cifar-jax env`."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from importlib import metadata
from typing import Any

import click

from cifar_jax import runtime
from cifar_jax.cli.output import AS_JSON
from cifar_jax.errors import UserError

_PREFIXES = ("JAX_", "XLA_", "CIFAR_JAX_", "TFDS_", "CUDA_VISIBLE_", "NVIDIA_TF32_", "LIBTPU_")


@click.command(short_help="Print versions, devices and settings for a bug report.")
@AS_JSON
def env(as_json: bool) -> None:
    """Print what a bug report needs: versions, machine, devices, environment variables and data."""
    report = _report()
    if as_json:
        click.echo(json.dumps(report, indent=2, ensure_ascii=False))
        return
    for name, value in report.items():
        if isinstance(value, dict):
            value = [f"{key} {text}" for key, text in value.items()] or ["none"]
        if isinstance(value, list):
            click.echo("\n  ".join((f"{name}:", *value)))
        else:
            click.echo(f"{name}: {value}")


def _report() -> dict[str, Any]:
    from cifar_jax import data
    from cifar_jax.runs import environment

    machine = environment.machine()
    commit, reason = environment.git_commit()
    return {
        "versions": {"cifar-jax": metadata.version("cifar-jax"), **environment.versions()},
        "git commit": commit or reason,
        "system": machine.system,
        "cpu": machine.cpu,
        "cores": machine.cores,
        "cpu features": " ".join(machine.features),
        "devices": _devices(),
        "environment variables": {
            name: value for name, value in sorted(os.environ.items()) if name.startswith(_PREFIXES)
        },
        "data": _or_error(data.status).splitlines(),
        "cache folder": _or_error(lambda: str(runtime.cache_dir())),
    }


def _or_error(function: Callable[[], str]) -> str:
    """Return the result of a function, or the error message if it raises a UserError."""
    try:
        return function()
    except UserError as error:
        return str(error)


def _devices() -> list[str]:
    """Return one line for each device of JAX. If there is no device, return the error message."""
    try:
        runtime.set_up()
        runtime.require()
    except UserError as error:
        return [str(error)]
    import jax

    return [f"{device.platform} {device.id}: {device.device_kind}" for device in jax.devices()]
