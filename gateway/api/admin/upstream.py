"""`/admin/upstream`: how purchases end, and the last failures with what upstream said."""

from __future__ import annotations

from aiohttp import web

from gateway.api.http.json import json_response
from gateway.api.services import SERVICES


async def show_upstreams(request: web.Request) -> web.Response:
    """`GET /admin/upstream`: the state of every upstream, of all workers and gateways together."""
    states = await request.app[SERVICES].upstream_health.read_all()
    return json_response({"data": [state.public() for state in states]})
