"""What the commands share: their options, how rows are printed, and faults in one line."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gateway.errors import GatewayError
from gateway.store.handshake import SchemaMismatch, StoreMissing

config_option = click.option(
    "--config", type=click.Path(path_type=Path), help="The gateway.yaml to use."
)
format_option = click.option(
    "--format",
    "form",
    type=click.Choice(["table", "json", "csv"]),
    default="table",
    show_default=True,
)


@contextmanager
def faults_in_words() -> Iterator[None]:
    """What keeps a command from its store, and what it refuses, is said in one line."""
    try:
        yield
    except (StoreMissing, SchemaMismatch) as fault:
        raise click.ClickException(str(fault)) from None
    except GatewayError as fault:
        raise click.ClickException(fault.message) from None


def show(rows: Sequence[dict[str, Any]], form: str, *, columns: Sequence[str]) -> None:
    """Rows as a table for a person, or as JSON or CSV for a program, on standard output."""
    if form == "json":
        click.echo(json.dumps(rows, indent=2))
        return
    cells = [[_cell(name, row.get(name)) for name in columns] for row in rows]
    if form == "csv":
        text = io.StringIO()
        csv.writer(text).writerows([columns, *cells])
        click.echo(text.getvalue(), nl=False)
        return
    table = Table(*columns)
    for line in cells:
        table.add_row(*map(escape, line))
    width = None if sys.stdout.isatty() else 200
    Console(width=width).print(table)


def _cell(name: str, value: Any) -> str:
    if value is None:
        return ""
    if name == "expires_at":
        return datetime.fromtimestamp(value, UTC).strftime("%Y-%m-%d %H:%M")
    if isinstance(value, dict):
        return " ".join(f"{key}={item}" for key, item in value.items())
    return " ".join(value) if isinstance(value, list | tuple) else str(value)
