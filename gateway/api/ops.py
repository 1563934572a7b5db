"""Endpoints for operators' machines: liveness, readiness, metrics."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from aiohttp import hdrs, web

from gateway.api.http.json import json_response
from gateway.api.http.sending import send_body
from gateway.api.scraping import scrape
from gateway.api.services import SERVICES
from gateway.failure_report import Reason
from gateway.metrics import CONTENT_TYPE

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


async def healthz(_request: web.Request) -> web.Response:
    """200 as long as the event loop runs."""
    return json_response({"status": "ok"}, headers=NO_STORE)


async def readyz(request: web.Request) -> web.Response:
    """503 before the store was first reached, and while draining.

    A later outage of the store, and failures of upstream, are only listed as `degraded`, with their
    reasons: keys without limits can still buy, and hits are served.
    """
    services = request.app[SERVICES]
    health, upstream = services.health, services.upstream_health.current()
    status, reasons = "ready", {}
    if not health.store_up:
        reasons["store"] = health.store_reason() or "The store did not answer."
    if health.is_books_memory_low:
        reasons["books_memory"] = BOOKS_MEMORY_LOW
    failure = upstream.last_failure
    if upstream.is_failing:
        # No credential is needed here, so what upstream said is left to `doctor` and the admin API.
        why = cause.explanation if (cause := upstream.cause) is not None else BREAKER_OPEN
        reasons["upstream"] = f"{why} {SEE_FAILURES}"
    if health.is_draining:
        status, reasons = "draining", {}
    elif not health.store_reached:
        status = "starting"
    body: dict[str, object] = {"status": status, "degraded": list(reasons)}
    if reasons:
        body["reasons"] = reasons
    if failure is not None:
        body["upstream"] = {
            "breaker": "open" if upstream.open_breakers else "closed",
            "last_success_at": upstream.last_success_at,
            "failures_since_success": upstream.failures_since_success,
            "last_failure": {
                "time": failure.time,
                "phase": failure.phase,
                "reason": failure.reason,
                "status": failure.status,
                "code": failure.code if CODE.fullmatch(failure.code or "") else None,
            },
        }
    return json_response(
        body,
        status=200 if status == "ready" else 503,
        headers=NO_STORE,
    )


async def metrics(request: web.Request) -> web.StreamResponse:
    """The metrics of all workers in Prometheus' text form."""
    compressed = GZIP.search(request.headers.get(hdrs.ACCEPT_ENCODING, "")) is not None
    body = await scrape(request.app[SERVICES], compressed=compressed)
    headers = {hdrs.CONTENT_TYPE: CONTENT_TYPE, hdrs.CONTENT_LENGTH: str(len(body))}
    if compressed:
        headers[hdrs.CONTENT_ENCODING] = "gzip"
    return await send_body(request, web.StreamResponse(headers=headers), [body])
