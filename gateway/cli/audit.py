"""`gateway audit`: who changed what, and when."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any, Final

import click

from gateway.access.audit import Audit, AuditEntry, parse_past_time
from gateway.cli.options import config_option, find_configuration, format_option
from gateway.cli.output import show
from gateway.cli.store import open_command_store

PAGE: Final = 500
COLUMNS: Final = ("time", "action", "object", "via", "by", "address", "before", "after")


@click.command("audit")
@click.option("--since", default="30d", show_default=True, metavar="WHEN", help="A duration before "
              "now, a date in UTC such as 2026-11-29, or Unix seconds.")  # fmt: skip
@click.option("--until", metavar="WHEN", help="The end, written the same way.")
@click.option(
    "--limit", type=click.IntRange(min=1), help="How many events at most, the newest first."
)
@config_option
@format_option
def audit(
    since: str, until: str | None, limit: int | None, config: Path | None, output_format: str
) -> None:
    """Lists changes of keys, teams and limits, purges and take-downs, newest first."""
    begin = _parse_time("--since", since)
    end = None if until is None else _parse_time("--until", until)
    if end is not None and end <= begin:
        raise click.BadParameter("it must be after --since", param_hint="--until")
    rows = [entry.public() for entry in asyncio.run(_read(config, begin, end, limit=limit))]
    if output_format != "json":
        rows = [_with_text(row) for row in rows]
    show(rows, output_format, columns=COLUMNS if output_format == "table" else ("id", *COLUMNS))


def _parse_time(option: str, text: str) -> float:
    try:
        return parse_past_time(text, now=time.time())
    except ValueError as error:
        raise click.BadParameter(f"expected {error}", param_hint=option) from None


def _with_text(row: dict[str, Any]) -> dict[str, Any]:
    """The fields before and after as one line of JSON each."""
    texts = {
        name: json.dumps(row[name], ensure_ascii=False) if row[name] is not None else None
        for name in ("before", "after")
    }
    return {**row, **texts}


async def _read(
    config: Path | None, since: float, until: float | None, *, limit: int | None
) -> list[AuditEntry]:
    async with open_command_store(find_configuration(config)) as store:
        entries: list[AuditEntry] = []
        while limit is None or len(entries) < limit:
            wanted = PAGE if limit is None else min(PAGE, limit - len(entries))
            after = entries[-1].id if entries else None
            page = await Audit(store).read(since, until, limit=wanted, after=after)
            entries += page
            if len(page) < wanted:
                break
        return entries
