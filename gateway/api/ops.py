"""Endpoints for operators' machines: liveness, readiness, metrics."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from aiohttp import hdrs, web

from gateway.api.http.json import json_response
from gateway.api.http.sending import send_body
from gateway.api.http.whole import WholeResponse
from gateway.api.scraping import scrape
from gateway.api.services import SERVICES
from gateway.failure_report import Reason
from gateway.metrics import CONTENT_TYPE
from gateway.purchasing.upstream_health import UpstreamState

NO_STORE: Final[Mapping[str, str]] = {hdrs.CACHE_CONTROL: "no-store"}

BOOKS_MEMORY_LOW: Final = "The books have used most of their memory: see `gateway doctor`."

BREAKER_OPEN: Final = Reason.BREAKER_OPEN.explanation

SEE_FAILURES: Final = (
    "The log (`upstream_failed`), `gateway doctor` and `GET /admin/upstream` have the message."
)

CODE: Final = re.compile(r"[a-z][a-z_]{2,63}")
"""A code that is a word of the API, and cannot name a person."""


GZIP: Final = re.compile(r"\bgzip\b(?!\s*;\s*q=0(\.0*)?\s*(,|$))", re.IGNORECASE)
"""In `Accept-Encoding`, unless its weight is 0."""


async def healthz(_request: web.Request) -> web.StreamResponse:
    """200 as long as the event loop runs."""
    return json_response({"status": "ok"}, headers=NO_STORE)


async def readyz(request: web.Request) -> web.StreamResponse:
    """503 before the store was first reached, and while draining.

    A later outage of the store, and failures of upstream, are only listed as `degraded`, with their
    reasons: keys without limits can still buy, and hits are served.
    """
    services = request.app[SERVICES]
    health, upstreams = services.health, services.upstream_health.current()
    status, reasons = "ready", {}
    if not health.store_up:
        reasons["store"] = health.store_reason() or "The store did not answer."
    if health.is_books_memory_low:
        reasons["books_memory"] = BOOKS_MEMORY_LOW
    for upstream in upstreams:
        if upstream.is_failing:
            # No credential is needed here, so what upstream said is left to `doctor` and the admin
            # API.
            why = cause.explanation if (cause := upstream.cause) is not None else BREAKER_OPEN
            name = "upstream" if len(upstreams) == 1 else f"upstream:{upstream.name}"
            reasons[name] = f"{why} {SEE_FAILURES}"
    if health.is_draining:
        status, reasons = "draining", {}
    elif not health.store_reached:
        status = "starting"
    body: dict[str, object] = {"status": status, "degraded": list(reasons)}
    if reasons:
        body["reasons"] = reasons
    if len(upstreams) > 1:
        switches = services.upstream_switches
        body["upstreams"] = {
            upstream.name: {
                "enabled": not switches.is_disabled(upstream.name),
                **_shown_upstream(upstream),
            }
            for upstream in upstreams
        }
    elif upstreams[0].last_failure is not None:
        body["upstream"] = _shown_upstream(upstreams[0])
    return json_response(
        body,
        status=200 if status == "ready" else 503,
        headers=NO_STORE,
    )


def _shown_upstream(upstream: UpstreamState) -> dict[str, object]:
    failure = upstream.last_failure
    return {
        "breaker": "open" if upstream.open_breakers else "closed",
        "last_success_at": upstream.last_success_at,
        "failures_since_success": upstream.failures_since_success,
        "last_failure": None
        if failure is None
        else {
            "time": failure.time,
            "phase": failure.phase,
            "reason": failure.reason,
            "status": failure.status,
            "code": failure.code if CODE.fullmatch(failure.code or "") else None,
        },
    }


async def metrics(request: web.Request) -> web.StreamResponse:
    """The metrics of all workers in Prometheus' text form."""
    compressed = GZIP.search(request.headers.get(hdrs.ACCEPT_ENCODING, "")) is not None
    body = await scrape(request.app[SERVICES], compressed=compressed)
    headers: dict[str, str] = {hdrs.CONTENT_ENCODING: "gzip"} if compressed else {}
    response = WholeResponse([body], content_type=CONTENT_TYPE, headers=headers)
    return await send_body(request, response)
