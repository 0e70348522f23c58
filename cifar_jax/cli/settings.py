"""The command `cifar-jax settings`."""

from __future__ import annotations

import json
import shutil
from typing import Any

import click

from cifar_jax.cli.output import AS_JSON


@click.command(short_help="List all settings, with their types and defaults.")
@AS_JSON
def settings(as_json: bool) -> None:
    """List all settings that `--set` can change, with their type, default and meaning."""
    from cifar_jax import config

    rows = config.describe()
    if as_json:
        click.echo(json.dumps(rows, indent=2, ensure_ascii=False))
        return
    width = min(100, shutil.get_terminal_size((100, 24)).columns)
    for row in rows:
        click.echo(f"{click.style(row['name'], bold=True)}: {row['type']}{_default(row)}")
        meaning = row["description"]
        if "when" in row:
            meaning += f" Only if {row['when']}."
        if not row["identity"]:
            meaning += " May change when a run is resumed."
        click.echo(click.wrap_text(meaning, width, "    ", "    "))


def _default(row: dict[str, Any]) -> str:
    if "default" not in row:
        return ""
    default = row["default"]
    text = default if isinstance(default, str) else json.dumps(default).replace("null", "none")
    return f"  [{text}]"
