"""Bodies and answers of the admin API."""

from __future__ import annotations

import orjson
from aiohttp import hdrs, web

from gateway.api.http.body import read_body
from gateway.request.body import parse_body

# ── bodies ──────────────────────────────────────────────────────────────────────────────────


async def _body(request: web.Request) -> dict[str, object]:
    return parse_body(await read_body(request), request.headers.get(hdrs.CONTENT_TYPE))


def _json(data: object, *, status: int = 200) -> web.Response:
    return web.Response(body=orjson.dumps(data), content_type="application/json", status=status)
