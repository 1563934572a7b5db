"""`gateway requests`: one request, as the books have it."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any, Final

import click

from gateway.access.audit import parse_past_time
from gateway.cli.options import config_option, find_configuration, format_option
from gateway.cli.output import show, show_one
from gateway.cli.store import open_command_store
from gateway.limits import MICROS_PER_USD
from gateway.purchasing.request_search import FoundRequest, RequestSearch
from gateway.room_settings import ledger_settings
from gateway.values import show_usd

COLUMNS: Final = (
    *("kind", "id", "request_id", "time", "key", "team", "user", "model", "asked_model"),
    *("size", "quality", "n"),
    *("outcome", "status", "error", "limit", "scope", "count", "flags", "images", "images_served"),
    *("cost_usd", "costs_usd", "saved_usd", "reserved_usd", "tokens", "price_date"),
    *("upstream", "upstream_request_id", "worker", "state", "latency_ms", "followed", "corrects"),
    *("corrected_at", "fingerprint", "prompt_hmac", "client_address", "labels", "tags"),
)
MONEY: Final = ("cost_usd", "saved_usd", "reserved_usd")


@click.group()
def requests() -> None:
    """One request: its cost, why it was refused, and what served it."""


@requests.command("show")
@click.argument("request_id", metavar="ID")
@click.option("--since", metavar="WHEN", help="From when on to search, for an id that does "
              "not begin with its time: 30d before now, a date in UTC, Unix seconds.")  # fmt: skip
@config_option
@format_option
def show_request(
    request_id: str, since: str | None, config: Path | None, output_format: str
) -> None:
    """Shows the records of a request, and its purchases that are not settled.

    ID is the `x-request-id` of an answer, or the id of a purchase, of a record, or of upstream's
    request.
    """
    try:
        begin = None if since is None else parse_past_time(since, now=time.time())
    except ValueError as error:
        raise click.BadParameter(f"expected {error}", param_hint="--since") from None
    found = asyncio.run(_find(config, request_id, since=begin))
    if output_format == "json":
        click.echo(json.dumps(found.public(), indent=2))
        return
    rows = _rows(found.public())
    if output_format == "csv":
        show(rows, output_format, columns=COLUMNS)
        return
    for row in rows:
        show_one(row, output_format, columns=COLUMNS)


async def _find(config: Path | None, request_id: str, *, since: float | None) -> FoundRequest:
    configuration = find_configuration(config)
    settings = configuration.read_settings()
    async with open_command_store(configuration) as store:
        return await RequestSearch(store, ledger_settings(settings)).find(request_id, since=since)


def _rows(found: dict[str, Any]) -> list[dict[str, Any]]:
    rows = [{"kind": _kind(record), **record} for record in found["records"]]
    rows += [
        {"kind": "open purchase", "time": purchase["since"], **purchase}
        for purchase in found["open_purchases"]
    ]
    rows += [{**record, "kind": f"followed {_kind(record)}"} for record in found["followed"]]
    return [{name: _text(name, value) for name, value in row.items()} for row in rows]


def _kind(record: dict[str, Any]) -> str:
    if "corrects" in record:
        return "correction"
    return "request" if record["id"] == record["request_id"] else "purchase"


def _text(name: str, value: Any) -> Any:
    """Dollars with their six decimals."""
    if name in MONEY:
        return show_usd(round(value * MICROS_PER_USD))
    if name == "costs_usd":
        return {kind: show_usd(round(usd * MICROS_PER_USD)) for kind, usd in value.items()}
    return value
