"""`gateway usage`: who spent what, and what the cache saved."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import click

from gateway.billing.reports import LABEL, Field, ReportQuery, ReportRefused, Reports
from gateway.billing.usage_rows import (
    DEFAULT_SINCE,
    WHAT_IF,
    WIDTHS,
    columns_of,
    split_groups,
    usage_cells,
    usage_query,
    usage_row,
)
from gateway.billing.what_if import WhatIf, WhatIfAnswer, parse_what_if
from gateway.billing.what_if_report import run_what_if
from gateway.catalog import Catalog
from gateway.cli.options import config_option, find_configuration, format_option
from gateway.cli.output import show, show_lines
from gateway.cli.store import open_command_store
from gateway.cli.usage_export import export
from gateway.values import show_usd
from gateway.wiring.books import wire_reports

WATCH_SECONDS: Final = 2.0

_WIDTH_OF: Final = {width: name for name, width in WIDTHS.items()}
"""A time to group by → `bucket_width`."""
_OPTIONS: Final[dict[Field, str]] = {"since": "--since", "until": "--until"}
_AMOUNTS: Final = (
    *("requests", "hits", "images_bought", "images_served"),
    *("cost_usd", "saved_usd", "presumed_usd"),
)
"""Columns of a table. JSON and CSV have all."""


@click.group(invoke_without_command=True)
@click.option("--by", multiple=True, metavar="GROUP", help="key, team, user, model, size, quality, "
              "outcome, label:NAME, or day, hour, minute; may be repeated, or separated by commas. "
              "Default: key.")  # fmt: skip
@click.option("--since", default=DEFAULT_SINCE, show_default=True, metavar="TIME",
              help="7d, 12h, a date, RFC 3339, or Unix seconds.")  # fmt: skip
@click.option("--until", metavar="TIME", help="The same; the report ends before it. Default: now.")
@click.option("--what-if", metavar="QUESTION", help="Also shows what it would have cost: "
              "quality=low, or cache=off.")  # fmt: skip
@click.option("--watch", is_flag=True, help="Shows it every two seconds until Ctrl-C.")
@config_option
@format_option
@click.pass_context
def usage(
    context: click.Context,
    by: tuple[str, ...],
    since: str,
    until: str | None,
    what_if: str | None,
    watch: bool,
    config: Path | None,
    output_format: str,
) -> None:
    """Shows who spent what, and what the cache saved.

    Days are those of `billing.time_zone`. 7d are the seven days before today, and today.
    """
    if context.invoked_subcommand is not None:
        return
    if watch and output_format != "table":
        raise click.UsageError("--watch shows a table; leave out --format.")
    asked = {"by": split_groups(by) or ("key",), "since": since, "until": until}
    asyncio.run(_usage(config, asked, what_if, output_format, is_watching=watch))


async def _usage(
    config: Path | None,
    asked: dict[str, Any],
    what_if: str | None,
    output_format: str,
    *,
    is_watching: bool,
) -> None:
    configuration = find_configuration(config)
    catalog = configuration.read_policy().catalog
    question = None if what_if is None else _question(what_if, catalog)
    async with open_command_store(configuration) as store:
        reports = wire_reports(configuration.read_settings(), store)
        while True:
            with _refusals_as_messages():
                query = _query(reports, **asked)
                rows, answer = await _run(reports, query, question, catalog)
            if is_watching and sys.stdout.isatty():
                click.clear()
            _show(reports, query, rows, output_format)
            if answer is not None:
                _show_uncomputed(answer)
            if not is_watching:
                return
            await asyncio.sleep(WATCH_SECONDS)


async def _run(
    reports: Reports, query: ReportQuery, question: WhatIf | None, catalog: Catalog
) -> tuple[list[dict[str, Any]], WhatIfAnswer | None]:
    """The rows of a report with their columns."""
    zone = reports.time_zone
    if question is None:
        return [usage_row(row, time_zone=zone) for row in await reports.run(query)], None
    found = await run_what_if(reports, query, question, catalog)
    pairs = zip(found.rows, found.cost_micros, strict=True)
    return [usage_row(r, time_zone=zone, what_if_micros=m) for r, m in pairs], found.answer


def _question(text: str, catalog: Catalog) -> WhatIf:
    try:
        return parse_what_if(text, catalog)
    except ValueError as error:
        raise click.BadParameter(f"{error}.", param_hint="--what-if") from None


def _query(reports: Reports, by: tuple[str, ...], since: str, until: str | None) -> ReportQuery:
    widths = [_WIDTH_OF[name] for name in by if name in _WIDTH_OF]
    if len(widths) > 1:
        raise ReportRefused("group_by", "one of day, hour and minute")
    return usage_query(
        since=since,
        until=until,
        bucket_width=widths[0] if widths else None,
        group_by=[name for name in by if name not in _WIDTH_OF],
        time_zone=reports.time_zone,
        now=time.time(),
        filters={},
    )


@contextmanager
def _refusals_as_messages() -> Iterator[None]:
    """Ends the command with exit status 2 for a query that no report answers."""
    try:
        yield
    except ReportRefused as refused:
        option = _OPTIONS.get(refused.field, "--by")
        raise click.BadParameter(refused.sentence, param_hint=option) from None


# ── output ──────────────────────────────────────────────────────────────────────────────────


def _show(
    reports: Reports, query: ReportQuery, rows: list[dict[str, Any]], output_format: str
) -> None:
    columns = columns_of(query.group_by, what_if=any(WHAT_IF in row for row in rows))
    if output_format == "json":
        show(rows, "json", columns=columns)
    elif output_format == "csv":
        show_lines([usage_cells(row) for row in rows], "csv", columns=columns)
    else:
        _show_table(reports, query, rows)


def _show_table(reports: Reports, query: ReportQuery, rows: list[dict[str, Any]]) -> None:
    plan, zone = reports.plan(query), reports.time_zone
    click.echo(f"From {reports.show(plan.since)} to {reports.show(plan.until)}", err=True)
    amounts = (*_AMOUNTS, *((WHAT_IF,) if any(WHAT_IF in row for row in rows) else ()))
    begin = [] if query.bucket == "all" else ["from"]
    columns = [*begin, *query.group_by, *amounts]
    lines = []
    for row in sorted(rows, key=lambda row: (row["from"], -row["cost_usd"])):
        cells = dict(zip(row, usage_cells(row), strict=True))
        cells["from"] = f"{row['from'].replace('T', ' ')} {zone}"
        values = [_value(row, name) for name in query.group_by]
        lines.append([*(cells[n] for n in begin), *values, *(cells[name] for name in amounts)])
    if len(rows) > 1:
        total = {name: sum(row[name] for row in rows) for name in amounts}
        rest = [""] * (len(columns) - len(amounts) - 1)
        lines.append(["total", *rest, *usage_cells(total)])
    show_lines(lines, "table", columns=columns)


def _show_uncomputed(answer: WhatIfAnswer) -> None:
    """Says what of the answer is as it was charged."""
    for part in answer.uncomputed:
        click.echo(
            f"As charged: ${show_usd(part.cost_micros)} of {part.model or 'no model'}: "
            f"{part.reason}.",
            err=True,
        )


def _value(row: dict[str, Any], group: str) -> str:
    if group.startswith(LABEL):
        return row["labels"][group.removeprefix(LABEL)] or ""
    return row[group] or ""


usage.add_command(export)
