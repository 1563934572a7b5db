"""`/admin/requests/{id}`: one request, as the books have it."""

from __future__ import annotations

from aiohttp import web

from gateway.api.admin.requests import check_query, read_time
from gateway.api.http.json import json_response
from gateway.api.services import SERVICES


async def show_request(request: web.Request) -> web.StreamResponse:
    """`GET /admin/requests/{id}?since`: its records, and its purchases that are still open."""
    check_query(request, ("since",))
    services = request.app[SERVICES]
    since = read_time(request, "since", now=services.clock())
    found = await services.request_search.find(request.match_info["id"], since=since)
    return json_response(found.public())
