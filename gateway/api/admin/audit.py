"""`/admin/audit`: who changed what, and when."""

from __future__ import annotations

from typing import Final

from aiohttp import web

from gateway.access.audit import DEFAULT_LIMIT, is_event_id
from gateway.api.admin.requests import check_query, invalid_value, read_limit, read_time
from gateway.api.http.json import json_response
from gateway.api.services import SERVICES

MAX_LISTED: Final = 1000


async def list_events(request: web.Request) -> web.StreamResponse:
    """`GET /admin/audit?since&until&limit&after`: the events, newest first."""
    check_query(request, ("since", "until", "limit", "after"))
    now = request.app[SERVICES].clock()
    since, until = read_time(request, "since", now=now), read_time(request, "until", now=now)
    if since is not None and until is not None and until <= since:
        raise invalid_value("until", "a time after 'since'")
    after = request.query.get("after")
    if after is not None and not is_event_id(after):
        raise invalid_value("after", "the id of an event")
    limit = read_limit(request, MAX_LISTED) or DEFAULT_LIMIT
    # One more, to know whether another page follows.
    found = await request.app[SERVICES].audit.read(since, until, limit=limit + 1, after=after)
    data = [entry.public() for entry in found[:limit]]
    return json_response({"data": data, "has_more": len(found) > limit})
