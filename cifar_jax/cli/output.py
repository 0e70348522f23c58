"""Options, argument types and output that several commands share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from cifar_jax.files import local_path

AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")

DEVICE = click.option(
    "--device",
    type=click.Choice(["cpu", "gpu", "tpu"]),
    help="Fail if JAX has no such device.  [default: the device that JAX finds]",
)


class LocalPath(click.Path):
    """Type of a command-line argument that is a local path. URLs are refused."""

    def __init__(self, **options: Any) -> None:
        super().__init__(path_type=Path, **options)

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        return super().convert(local_path(value), param, ctx)


class WholeNumber(click.IntRange):
    """Type of a command-line argument that is a whole number in a range."""

    name = "whole number"  # Without a name, error messages would say "integer range".


def count(value: int | None) -> str:
    """Return `value` as text with thousands separators, or `-` if it is None or 0."""
    return f"{value:,}" if value else "-"


def print_table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()
) -> None:
    """Print a table. Text wraps at the width of the terminal; numbers are never cut.

    Args:
      columns: headings of the columns.
      rows: cells of each row.
      right: indices of columns with numbers, which are aligned to the right.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from cifar_jax import tables

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for index, column in enumerate(columns):
        is_number = index in right
        justify = "right" if is_number else "left"
        table.add_column(column, justify=justify, no_wrap=is_number, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))  # Rich would read `[name]` as markup.
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=10_000)  # Do not wrap output to a file or pipe.
    tables.print_table(table, console)
