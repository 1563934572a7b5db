"""`GET /admin/usage`: the usage of all keys, as JSON or CSV."""

from __future__ import annotations

from typing import Final

from aiohttp import web

from gateway.api.admin.requests import invalid_value
from gateway.api.services import SERVICES
from gateway.api.usage import read_query, run_report, slices, usage_response
from gateway.billing.reports import DIMENSIONS, ReportQuery, ReportRow
from gateway.billing.usage_rows import columns_of, usage_cells, usage_row
from gateway.csv_text import csv_lines

CSV: Final = "text/csv"
FORMATS: Final = ("json", "csv")


async def show_usage(request: web.Request) -> web.Response:
    """`GET /admin/usage`: filters are parameters with the names of dimensions."""
    form = request.query.get("format", "json")
    if form not in FORMATS:
        raise invalid_value("format", " or ".join(FORMATS))
    query = read_query(request, DIMENSIONS, more=("format",))
    rows = await run_report(request, query)
    time_zone = request.app[SERVICES].reports.time_zone
    if form == "csv":
        return await _csv_response(rows, query, time_zone)
    return await usage_response({"time_zone": time_zone}, rows, time_zone=time_zone)


async def _csv_response(rows: list[ReportRow], query: ReportQuery, time_zone: str) -> web.Response:
    lines = [csv_lines([columns_of(query.group_by)])]
    lines += [
        csv_lines(usage_cells(usage_row(row, time_zone=time_zone)) for row in part)
        async for part in slices(rows)
    ]
    return web.Response(
        text="".join(lines),
        content_type=CSV,
        charset="utf-8",
        headers={"Content-Disposition": 'attachment; filename="usage.csv"'},
    )
