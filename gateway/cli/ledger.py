"""`gateway ledger`: the books of a running gateway."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any, Final

import click

from gateway.billing.quota import as_amounts
from gateway.cli.ledger_export import export
from gateway.cli.ledger_verify import verify
from gateway.cli.options import config_option, find_configuration, format_option
from gateway.cli.output import show
from gateway.cli.store import open_command_store
from gateway.purchasing.unreadable import close_at_reserved, key_id_of, read_open_journals
from gateway.store.commands import Journal
from gateway.values import show_usd

COLUMNS: Final = (
    *("purchase", "worker", "state", "age_seconds", "key_id", "images", "tokens", "usd"),
    "result",
)

OPEN: Final = "open"
CLOSED: Final = "closed"
ALIVE: Final = "worker is alive"


@click.group()
def ledger() -> None:
    """The books: open purchases and their records."""


ledger.add_command(export)
ledger.add_command(verify)


@ledger.command("repair")
@click.option("--dry-run", is_flag=True, help="Only list them.")
@config_option
@format_option
def repair(dry_run: bool, config: Path | None, output_format: str) -> None:
    """Lists and closes open purchases whose journal cannot be read.

    Each is charged what it has reserved, as a running gateway does by itself, and leaves a record
    with the flag `unreadable`. Those of workers that are alive are only listed.
    """
    rows = asyncio.run(_repair(config, is_dry_run=dry_run))
    show(rows, output_format, columns=COLUMNS)
    closed = sum(row["result"] == CLOSED for row in rows)
    click.echo(f"Unreadable journals: {len(rows)}, closed: {closed}.", err=True)


async def _repair(config: Path | None, *, is_dry_run: bool) -> list[dict[str, Any]]:
    configuration = find_configuration(config)
    dead_after_seconds = configuration.read_settings().workers.dead_after_seconds
    async with open_command_store(configuration) as store:
        found = await read_open_journals(store, dead_after_seconds=dead_after_seconds)
        rows = []
        for journal in found.unreadable:
            result = OPEN if journal.worker in found.dead_workers else ALIVE
            if result == OPEN and not is_dry_run:
                await close_at_reserved(store, journal)
                result = CLOSED
            rows.append(_row(journal, result))
    return rows


def _row(journal: Journal, result: str) -> dict[str, Any]:
    reserved = as_amounts(journal.reserved)
    age_seconds = int(time.time() - journal.reserved_at) if journal.reserved_at else None
    return {
        "purchase": journal.purchase,
        "worker": journal.worker,
        "state": journal.state,
        "age_seconds": age_seconds,
        "key_id": key_id_of(journal),
        "images": reserved.images,
        "tokens": reserved.tokens,
        "usd": show_usd(reserved.usd_micros),
        "result": result,
    }
