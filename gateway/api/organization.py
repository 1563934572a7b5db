"""`GET /v1/organization/usage/images` and `/v1/organization/costs`: reports as OpenAI's clients
read them. `billing.organization` reads the query and makes the pages.
"""

from __future__ import annotations

from aiohttp import web

from gateway.api.http.json import json_response
from gateway.api.services import SERVICES
from gateway.billing.organization import (
    COSTS,
    USAGE,
    PageQuery,
    Shape,
    create_page,
    explain,
    parse_query,
)
from gateway.billing.reports import ReportRefused, ReportRow, Reports


async def show_usage(request: web.Request) -> web.Response:
    """`GET /v1/organization/usage/images`."""
    return await _show(request, USAGE)


async def show_costs(request: web.Request) -> web.Response:
    """`GET /v1/organization/costs`."""
    return await _show(request, COSTS)


async def _show(request: web.Request, shape: Shape) -> web.Response:
    services = request.app[SERVICES]
    query = parse_query(shape, request.query.items(), services.clock())
    return json_response(create_page(*await _read(services.reports, query)))


async def _read(reports: Reports, query: PageQuery) -> tuple[PageQuery, list[ReportRow]]:
    """The rows of a page, which has fewer buckets than asked for if those have too many rows."""
    while True:
        try:
            return query, await reports.run(query.report)
        except ReportRefused as refused:
            # Every group of a page is a known one, so only their number can be wrong.
            shorter = query.halved() if refused.field == "group_by" else None
            if shorter is None:
                raise explain(query, refused) from None
            query = shorter
