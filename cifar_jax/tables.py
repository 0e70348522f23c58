"""Print tables that fit the width of the terminal. Numbers are never cut."""

from __future__ import annotations

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

_TEXT_WIDTH = 10
"""Smallest width of a wrapped column with text, in characters."""


def print_table(table: Table, console: Console) -> None:
    """Print a table. Columns with text wrap if the table is wider than the terminal.

    Columns with `no_wrap` keep their width, so a table may be wider than the terminal.
    """
    options = console.options.update(max_width=10_000)
    foldable = 0
    for column in table.columns:
        cells = [Measurement.get(console, options, c) for c in (column.header, *column.cells)]
        whole, word = max(cell.maximum for cell in cells), max(cell.minimum for cell in cells)
        folded = max(min(word, _TEXT_WIDTH), column.min_width or 0)
        column.min_width = whole if column.no_wrap else folded
        foldable += 0 if column.no_wrap else max(0, word - folded)
    width = console.width
    console.width = max(width, Measurement.get(console, options, table).minimum - foldable)
    console.print(table, crop=False)
    console.width = width
