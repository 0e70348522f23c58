"""What the verbs share: options, and how they print."""

from __future__ import annotations

from collections.abc import Sequence

import click

AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")

DEVICE = click.option(
    "--device",
    type=click.Choice(["cpu", "gpu", "tpu"]),
    help="Refuse to compute on anything else.  [what JAX finds]",
)


def count(value: int | None) -> str:
    """`value` with thousands separated; `-` where there is none."""
    return f"{value:,}" if value else "-"


def print_table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()
) -> None:
    """A table as wide as the terminal; into a file or a pipe nothing is cut."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(
            column, justify="right" if number in right else "left", no_wrap=True, overflow="fold"
        )
    for row in rows:
        table.add_row(*row)
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=200)  # into a file or a pipe nothing is cut
    console.print(table)
