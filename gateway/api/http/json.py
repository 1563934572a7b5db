"""JSON answers."""

from __future__ import annotations

import orjson
from aiohttp import web


def _json(data: object) -> web.Response:
    return web.Response(body=orjson.dumps(data), content_type="application/json")
