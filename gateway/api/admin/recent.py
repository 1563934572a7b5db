"""`GET /admin/requests`: the latest requests, and why some were refused or failed."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Final, get_args

from aiohttp import web

from gateway.api.admin.requests import check_query, invalid_value, read_limit, read_time
from gateway.api.http.json import json_response
from gateway.api.services import SERVICES, Services
from gateway.billing.alerts import dollars
from gateway.billing.export import parse_position
from gateway.billing.recent_requests import RequestFilter, message_of, reason_of
from gateway.errors import StoreUnavailable
from gateway.images import Outcome, Record

MAX_LISTED: Final = 500
DEFAULT_LIMIT: Final = 50
PARAMETERS: Final = ("outcome", "key", "model", "flag", "since", "limit", "after")
OUTCOMES: Final[Collection[str]] = get_args(Outcome)


async def list_requests(request: web.Request) -> web.StreamResponse:
    """`GET /admin/requests`: newest first. `after` is what the previous page said."""
    check_query(request, PARAMETERS)
    services, after = request.app[SERVICES], request.query.get("after")
    if after is not None and not _is_cursor(after):
        raise invalid_value("after", "what the previous page has as 'after'")
    page = await services.recent_requests.read(
        _read_filter(request), limit=read_limit(request, MAX_LISTED) or DEFAULT_LIMIT, after=after
    )
    said = await _read_said(services, page.records)
    data = [_public(record, said.get(record.request_id, "")) for record in page.records]
    return json_response({"data": data, "after": page.after})


def _is_cursor(text: str) -> bool:
    try:
        return parse_position(text) == text
    except ValueError:
        return False


def _read_filter(request: web.Request) -> RequestFilter:
    query = request.query
    outcomes = [text.strip() for text in query.get("outcome", "").split(",") if text.strip()]
    if any(outcome not in OUTCOMES for outcome in outcomes):
        raise invalid_value("outcome", f"some of {', '.join(OUTCOMES)}, separated by commas")
    return RequestFilter(
        outcomes=frozenset(outcomes) or None,
        key=query.get("key"),
        model=query.get("model"),
        flag=query.get("flag"),
        since=read_time(request, "since", now=request.app[SERVICES].clock()),
    )


async def _read_said(services: Services, records: Collection[Record]) -> Mapping[str, str]:
    """What upstream said of the last failures, by the id of the request."""
    if not any(record.outcome == "failed" for record in records):
        return {}
    try:
        states = await services.upstream_health.read_all()
    except StoreUnavailable:
        return {}
    return {
        failed.request_id: failed.message
        for state in states
        for failed in state.failures
        if failed.message
    }


def _public(record: Record, said: str) -> dict[str, Any]:
    return {
        "id": record.request_id,
        "record": record.id,
        "time": record.time,
        **{name: getattr(record, name) for name in ("key", "team", "user", "model")},
        **{name: getattr(record, name) for name in ("size", "quality", "n", "outcome")},
        "reason": reason_of(record),
        "message": message_of(record, said),
        "flags": list(record.flags),
        "count": record.count or 1,
        "cost_usd": dollars(record.cost_micros),
        "saved_usd": dollars(record.saved_micros),
        "latency_ms": record.latency_ms,
        "upstream": record.upstream,
    }
