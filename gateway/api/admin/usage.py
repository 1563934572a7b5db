"""`GET /admin/usage`: the usage of all keys, as JSON or CSV."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from aiohttp import web

from gateway.api.admin.requests import invalid_value
from gateway.api.services import SERVICES
from gateway.api.usage import (
    UsageRow,
    one_value,
    read_query,
    refusals_as_errors,
    run_report,
    slices,
    usage_response,
)
from gateway.billing.reports import DIMENSIONS, ReportQuery
from gateway.billing.usage_rows import columns_of, usage_cells, usage_row, what_if_object
from gateway.billing.what_if import parse_what_if
from gateway.billing.what_if_report import run_what_if
from gateway.csv_text import csv_lines
from gateway.errors import ErrorCode, InvalidRequest

CSV: Final = "text/csv"
FORMATS: Final = ("json", "csv")
WHAT_IF: Final = "what_if"


async def show_usage(request: web.Request) -> web.Response:
    """`GET /admin/usage`: filters are parameters with the names of dimensions."""
    given = one_value(request, "format")
    form = "json" if given is None else given
    if form not in FORMATS:
        raise invalid_value("format", " or ".join(FORMATS))
    time_zone = request.app[SERVICES].reports.time_zone
    query = read_query(request, DIMENSIONS, more=("format", WHAT_IF))
    head: dict[str, object] = {"time_zone": time_zone}
    rows: Iterator[UsageRow]
    if (question := one_value(request, WHAT_IF)) is None:
        rows = (usage_row(row, time_zone=time_zone) for row in await run_report(request, query))
    else:
        answer, rows = await _what_if(request, query, question)
        head[WHAT_IF] = answer
    if form == "json":
        return await usage_response(head, rows)
    columns = columns_of(query.group_by, what_if=question is not None)
    lines = [csv_lines([columns])]
    lines += [csv_lines(map(usage_cells, part)) async for part in slices(rows)]
    return web.Response(
        text="".join(lines),
        content_type=CSV,
        charset="utf-8",
        headers={"Content-Disposition": 'attachment; filename="usage.csv"'},
    )


async def _what_if(
    request: web.Request, query: ReportQuery, question: str
) -> tuple[dict[str, object], Iterator[UsageRow]]:
    """The answer for all rows together, and the rows with their own."""
    services = request.app[SERVICES]
    catalog, reports = services.policy().catalog, services.reports
    try:
        asked = parse_what_if(question, catalog)
    except ValueError as error:
        raise InvalidRequest(
            f"Invalid '{WHAT_IF}': {error}.", param=WHAT_IF, code=ErrorCode.INVALID_VALUE
        ) from None
    with refusals_as_errors():
        found = await run_what_if(reports, query, asked, catalog)
    rows = (
        usage_row(row, time_zone=reports.time_zone, what_if_micros=micros)
        for row, micros in zip(found.rows, found.cost_micros, strict=True)
    )
    return what_if_object(question, found.answer), rows
