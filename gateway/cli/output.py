"""How commands print: rows as a table, JSON or CSV, and errors as one line."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Final

import click

from gateway.catalog import CatalogError
from gateway.configuration.expand import ConfigError
from gateway.csv_text import csv_lines
from gateway.errors import GatewayError, StoreUnavailable
from gateway.process.listener import CannotListen
from gateway.process.supervisor import CannotStart
from gateway.process.unusable_folder import FolderUnusable
from gateway.store.handshake import SchemaMismatch, StoreMisconfigured, StoreMissing

TIMES: Final = (
    *("time", "created_at", "expires_at", "last_used_at"),
    *("former_secrets_expire_at", "revoked_at", "resets_at", "corrected_at"),
)
"""Columns of Unix seconds, which a table and CSV show as a date in UTC."""


@contextmanager
def errors_as_messages() -> Iterator[None]:
    """Ends the command with the message of an error that its user can act on."""
    try:
        yield
    except (CannotListen, CannotStart, CatalogError, ConfigError) as error:
        raise click.ClickException(str(error)) from None
    except (FolderUnusable, SchemaMismatch, StoreMisconfigured, StoreMissing) as error:
        raise click.ClickException(str(error)) from None
    except StoreUnavailable as error:
        raise click.ClickException(error.reason or error.message) from None
    except GatewayError as error:
        raise click.ClickException(error.message) from None
    except OSError as error:
        message = f"{error.filename}: {error.strerror}." if error.filename else str(error)
        raise click.ClickException(message) from None


def show(rows: Sequence[dict[str, Any]], output_format: str, *, columns: Sequence[str]) -> None:
    """Prints rows as a table for a person, or as JSON or CSV for a program."""
    if output_format == "json":
        click.echo(json.dumps(rows, indent=2))
        return
    cells = [[_cell(name, row.get(name)) for name in columns] for row in rows]
    show_lines(cells, output_format, columns=columns)


def show_lines(
    cells: Sequence[Sequence[str]], output_format: str, *, columns: Sequence[str]
) -> None:
    """As `show`, of cells that are text already, as a table or CSV."""
    if output_format == "csv":
        click.echo(csv_lines([columns, *cells]), nl=False)
        return
    # Imported only here, because commands without a table start faster without it.
    from rich.console import Console  # noqa: PLC0415
    from rich.markup import escape  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    table = Table(*columns)
    for line in cells:
        table.add_row(*(escape(_printable(cell)) for cell in line))
    # Without a terminal, rich assumes 80 columns and wraps longer cells.
    width = None if sys.stdout.isatty() else 200
    Console(width=width).print(table)


def _printable(text: str) -> str:
    """The text without what a terminal obeys: the `user` of a request is a client's own text."""
    return "".join(char if char.isprintable() or char == "\n" else "?" for char in text)


def show_one(row: dict[str, Any], output_format: str, *, columns: Sequence[str]) -> None:
    """As `show`, one thing; as a table it has a line for each field that is set."""
    if output_format == "table":
        fields = [{"field": n, "value": _cell(n, row[n])} for n in columns if n in row]
        show(fields, output_format, columns=("field", "value"))
    else:
        show([row], output_format, columns=columns)


def _cell(name: str, value: Any) -> str:
    if value is None:
        return ""
    if name in TIMES:
        times = value if isinstance(value, list) else [value]
        dates = (datetime.fromtimestamp(at, UTC) for at in times)
        return ", ".join(date.strftime("%Y-%m-%d %H:%M UTC") for date in dates)
    if isinstance(value, dict):
        return " ".join(f"{key}={_item(item)}" for key, item in value.items())
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _item(value: Any) -> str:
    """A limit that has more than a number, as `5:shadow:0.5,0.8`; anything else as it is."""
    if not isinstance(value, dict) or "max" not in value:
        return str(value)
    warn_at = ",".join(map(str, value["warn_at"]))
    return f"{value['max']}:{value['mode']}:{warn_at}"
