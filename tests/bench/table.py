"""Prints the results as a table."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from tests.bench.cells import GATEWAY, Row

COLUMNS = ("upstream", "nginx", "bare", GATEWAY)
WIDTH = 165
"""Fixed, so that output into a file is as wide."""


def print_table(title: str, rows: Sequence[Row], *, peers: Sequence[str]) -> None:
    """Prints the rows, with a column for each target."""
    columns = (*COLUMNS, *peers)
    table = Table(title=title, title_justify="left", title_style="")
    table.add_column("requests a second")
    for name in (*columns, "ratio", "floor"):
        table.add_column(name, justify="right")
    table.add_column("")
    for row in rows:
        figures = (row.figures.get(name, "–") for name in columns)
        table.add_row(row.name, *figures, row.ratio or "–", row.floor or "–", row.verdict)
    Console(width=WIDTH).print(table)
