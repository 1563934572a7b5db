"""`gateway ledger verify`: proves that the books agree."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from pathlib import Path
from typing import Any, Final

import click

from gateway.billing.ledger_reader import Difference
from gateway.billing.verification import Verified
from gateway.cli.options import config_option, find_configuration, format_option
from gateway.cli.output import show
from gateway.cli.store import open_command_access
from gateway.store.batch import execute
from gateway.store.commands import Journal, OpenJournals
from gateway.values import show_usd
from gateway.wiring.verification import create_verification

DIFFERENCES: Final = ("book", "subject", "window", "unit", "expected", "found")
PURCHASES: Final = ("purchase", "worker", "state", "age_seconds", "images", "tokens", "usd")
MAX_LISTED: Final = 1000
"""Open purchases that are listed."""


@click.command("verify")
@config_option
@format_option
def verify(config: Path | None, output_format: str) -> None:
    """Proves that ledger, totals, counters and running totals agree, while purchases go on.

    Lists each difference with both sums. Lists the open purchases too, which are not differences.
    Exits with 1 if there is a difference.
    """
    verified, purchases = asyncio.run(_verify(config))
    if output_format == "json":
        click.echo(json.dumps({**verified.to_dict(), "open_purchases": purchases}, indent=2))
    else:
        _show(verified, purchases, output_format)
    for line in _notes(verified):
        click.echo(line, err=True)
    if not verified.is_balanced:
        raise click.exceptions.Exit(1)


async def _verify(config: Path | None) -> tuple[Verified, list[dict[str, Any]]]:
    configuration = find_configuration(config)
    settings = configuration.read_settings()
    worker = f"verify-{secrets.token_hex(4)}"
    async with open_command_access(configuration) as (store, access):
        verification = create_verification(
            settings, store, access.keys, worker=worker, is_full=True
        )
        verified = await verification.run()
        journals = await execute(store, OpenJournals(limit=MAX_LISTED))
        return verified, [_purchase(journal) for journal in journals]


def _show(verified: Verified, purchases: list[dict[str, Any]], output_format: str) -> None:
    differences = [_difference(one) for one in verified.shown]
    if output_format == "csv":
        rows = [*differences, *purchases]
        show(rows, output_format, columns=(*DIFFERENCES, *PURCHASES))
        return
    if differences:
        show(differences, output_format, columns=DIFFERENCES)
    if purchases:
        show(purchases, output_format, columns=PURCHASES)


def _notes(verified: Verified) -> list[str]:
    notes = [f"Not compared: {note}." for note in verified.not_compared]
    if verified.unreadable:
        places = ", ".join(verified.unreadable[:3])
        notes.append(f"Charged records that cannot be read: {len(verified.unreadable)} ({places}).")
    open_ones = "over 1,000" if verified.purchases < 0 else str(verified.purchases)
    result = "The books agree" if verified.is_balanced else f"Differences: {verified.differences}"
    notes.append(
        f"{result}. Records: {verified.records}, windows: {verified.windows}, running totals: "
        f"{verified.running_totals}, quarter hours and days: {verified.slots}, open purchases: "
        f"{open_ones}, seconds: {verified.seconds}."
    )
    return notes


def _difference(one: Difference) -> dict[str, Any]:
    is_money = one.unit.startswith("usd_micros")
    return {
        "book": one.book,
        "subject": one.subject,
        "window": one.window,
        "unit": one.unit.replace("usd_micros", "usd"),
        "expected": _usd(one.expected) if is_money else one.expected,
        "found": _usd(one.found) if is_money else one.found,
    }


def _usd(micros: int) -> str:
    return f"-{show_usd(-micros)}" if micros < 0 else show_usd(micros)


def _purchase(journal: Journal) -> dict[str, Any]:
    age_seconds = int(time.time() - journal.reserved_at) if journal.reserved_at else None
    return {
        "purchase": journal.purchase,
        "worker": journal.worker,
        "state": journal.state,
        "age_seconds": age_seconds,
        "images": journal.reserved.get("images", 0),
        "tokens": journal.reserved.get("tokens", 0),
        "usd": show_usd(journal.reserved.get("usd_micros", 0)),
    }
