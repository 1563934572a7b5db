"""`gateway usage`: who spent what, and what the cache saved."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import click

from gateway.assembly import wire_reports
from gateway.billing.reports import LABEL, Field, ReportQuery, ReportRefused, ReportRow, Reports
from gateway.billing.usage_rows import (
    DEFAULT_SINCE,
    WIDTHS,
    columns_of,
    split_groups,
    usage_cells,
    usage_query,
    usage_row,
)
from gateway.cli.options import config_option, find_configuration, format_option
from gateway.cli.output import show, show_lines
from gateway.cli.store import open_command_store

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
@click.option("--watch", is_flag=True, help="Shows it every two seconds until Ctrl-C.")
@config_option
@format_option
@click.pass_context
def usage(
    context: click.Context,
    by: tuple[str, ...],
    since: str,
    until: str | None,
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
    asyncio.run(_usage(config, asked, output_format, is_watching=watch))


async def _usage(
    config: Path | None, asked: dict[str, Any], output_format: str, *, is_watching: bool
) -> None:
    configuration = find_configuration(config)
    async with open_command_store(configuration) as store:
        reports = wire_reports(configuration.read_settings(), store)
        while True:
            with _refusals_as_messages():
                query = _query(reports, **asked)
                rows = await reports.run(query)
            if is_watching and sys.stdout.isatty():
                click.clear()
            _show(reports, query, rows, output_format)
            if not is_watching:
                return
            await asyncio.sleep(WATCH_SECONDS)


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
        raise click.BadParameter(f"expected {refused.expected}.", param_hint=option) from None


# ── output ──────────────────────────────────────────────────────────────────────────────────


def _show(
    reports: Reports, query: ReportQuery, rows: Sequence[ReportRow], output_format: str
) -> None:
    zone = reports.time_zone
    found = [usage_row(row, time_zone=zone) for row in rows]
    columns = columns_of(query.group_by)
    if output_format == "json":
        show(found, "json", columns=columns)
    elif output_format == "csv":
        show_lines([usage_cells(row) for row in found], "csv", columns=columns)
    else:
        _show_table(reports, query, found)


def _show_table(reports: Reports, query: ReportQuery, rows: list[dict[str, Any]]) -> None:
    plan, zone = reports.plan(query), reports.time_zone
    click.echo(f"From {reports.show(plan.since)} to {reports.show(plan.until)}", err=True)
    rows = sorted(rows, key=lambda row: (row["from"], -row["cost_usd"]))
    lines = []
    for row in rows:
        cells = dict(zip(row, usage_cells(row), strict=True))
        begin = [f"{row['from'].replace('T', ' ')} {zone}"] if query.bucket != "all" else []
        values = [_value(row, name) for name in query.group_by]
        lines.append([*begin, *values, *(cells[name] for name in _AMOUNTS)])
    columns = [*(["from"] if query.bucket != "all" else []), *query.group_by, *_AMOUNTS]
    if len(rows) > 1:
        total = {name: sum(row[name] for row in rows) for name in _AMOUNTS}
        rest = [""] * (len(columns) - len(_AMOUNTS) - 1)
        lines.append(["total", *rest, *usage_cells(total)])
    show_lines(lines, "table", columns=columns)


def _value(row: dict[str, Any], group: str) -> str:
    if group.startswith(LABEL):
        return row["labels"][group.removeprefix(LABEL)] or ""
    return row[group] or ""
