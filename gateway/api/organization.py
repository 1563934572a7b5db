"""`GET /v1/organization/usage/images` and `/v1/organization/costs`: reports as OpenAI's clients
read them. `billing.organization` reads the query and makes the pages.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import orjson
from aiohttp import web

from gateway.api.http.json import JSON
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
from gateway.billing.reports import SLICE_ROWS, ReportRefused, ReportRow, Reports


async def show_usage(request: web.Request) -> web.Response:
    """`GET /v1/organization/usage/images`."""
    return await _show(request, USAGE)


async def show_costs(request: web.Request) -> web.Response:
    """`GET /v1/organization/costs`."""
    return await _show(request, COSTS)


async def _show(request: web.Request, shape: Shape) -> web.Response:
    services = request.app[SERVICES]
    query = parse_query(shape, request.query.items(), services.clock())
    page = await _read(services.reports, query)
    # A page of 10,000 results takes up to half a second, which would stop the event loop.
    body = await asyncio.to_thread(_encode, *page)
    return web.Response(body=body, content_type=JSON)


def _encode(query: PageQuery, rows: Sequence[ReportRow]) -> bytes:
    """The page as JSON. Each call of `dumps` keeps all threads waiting, so it gets a part."""
    page = create_page(query, rows)
    buckets = []
    for bucket in page["data"]:
        results = bucket["results"]
        parts = (results[at : at + SLICE_ROWS] for at in range(0, len(results), SLICE_ROWS))
        encoded = b",".join(orjson.dumps(part)[1:-1] for part in parts)
        rest = orjson.dumps({name: bucket[name] for name in bucket if name != "results"})
        buckets.append(rest[:-1] + b',"results":[' + encoded + b"]}")
    data = b",".join(buckets)
    rest = orjson.dumps({name: page[name] for name in page if name not in ("object", "data")})
    return b'{"object":"page","data":[' + data + b"]," + rest[1:]


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
