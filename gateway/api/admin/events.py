"""`GET /admin/events`: what happened that people should know of, newest first."""

from __future__ import annotations

from typing import Final

from aiohttp import web

from gateway.api.admin.requests import check_query, invalid_value, read_limit
from gateway.api.http.json import json_response
from gateway.api.services import SERVICES
from gateway.events import EVENT_KINDS
from gateway.webhooks.kept_events import is_event_cursor

MAX_LISTED: Final = 500
DEFAULT_LIMIT: Final = 50


async def list_events(request: web.Request) -> web.StreamResponse:
    """`GET /admin/events?limit&after&kind`: those that are kept, sent or not."""
    check_query(request, ("limit", "after", "kind"))
    after, kind = request.query.get("after"), request.query.get("kind")
    kinds = [text.strip() for text in (kind or "").split(",") if text.strip()]
    if any(one not in EVENT_KINDS for one in kinds):
        raise invalid_value("kind", f"some of {', '.join(EVENT_KINDS)}, separated by commas")
    if after is not None and not is_event_cursor(after):
        raise invalid_value("after", "what the previous page has as 'after'")
    found, next_page = await request.app[SERVICES].kept_events.read(
        limit=read_limit(request, MAX_LISTED) or DEFAULT_LIMIT, after=after, kinds=kinds
    )
    return json_response({"data": [event.public() for event in found], "after": next_page})
