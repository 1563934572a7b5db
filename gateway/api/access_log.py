"""The access log: one line for each request, as `docs/reference/log.md#requests` describes it.

A line has nothing that may contain a secret or a prompt: neither the path nor the query of a
request, no text of its body, and no message of an error. Fields that do not apply are left out.
"""

from __future__ import annotations

import os
import re
from typing import Any, Final

import structlog
from aiohttp import web

from gateway.api.exchange import Exchange
from gateway.api.rendering import CACHE_STATUS
from gateway.errors import GatewayError, LimitExceeded
from gateway.limits import MICROS_PER_USD
from gateway.proxy.context import RequestContext
from gateway.request.headers import retry_count
from gateway.trace_context import NO_TRACE_CONTEXT

EVENT: Final = "request_answered"

NO_ENDPOINT: Final = "none"
"""For requests that match no route or cannot be read."""

_CACHE_NAME: Final = "image-gateway; "

_WORD: Final = re.compile(r"[a-z][a-z0-9_]{2,63}")

log = structlog.get_logger("gateway.access_log")


def log_request(
    request: web.Request,
    exchange: Exchange,
    *,
    endpoint: str,
    outcome: str,
    seconds: float,
    response: web.StreamResponse | None = None,
    error: str | None = None,
) -> None:
    """The line of a request that came to a handler; without a response if it was interrupted."""
    fields: dict[str, Any] = {
        "request_id": exchange.request_id,
        "client_address": exchange.client_address,
        "method": request.method,
        "endpoint": endpoint,
        "outcome": outcome,
        "seconds": round(seconds, 4),
        "pid": os.getpid(),
    }
    if response is not None:
        fields["status"] = response.status
        fields["bytes"] = exchange.body_bytes or response.content_length or 0
    if request.transport is None:
        fields["client_disconnected"] = True
    if exchange.key_name is not None:
        fields["key"] = exchange.key_name
    if (context := exchange.context) is not None:
        _add_image_request(fields, exchange, context)
    if exchange.error is not None:
        _add_error(fields, exchange.error)
    if error is not None:
        fields["error"] = error
    if retries := retry_count(request.headers):
        fields["retry_count"] = retries
    if exchange.trace is not NO_TRACE_CONTEXT:
        fields.update(exchange.trace.fields)
    log.info(EVENT, **fields)


def log_unread(request_id: str, client_address: str, error: GatewayError) -> None:
    """The line of a request that was answered with an error before it was read."""
    log.info(
        EVENT,
        request_id=request_id,
        client_address=client_address,
        endpoint=NO_ENDPOINT,
        outcome="refused" if error.status < 500 or error.code else "failed",
        status=error.status,
        error=_code(error),
        pid=os.getpid(),
    )


def _add_image_request(fields: dict[str, Any], exchange: Exchange, context: RequestContext) -> None:
    purchase = context.purchase
    if (team := context.principal.team) is not None:
        fields["team"] = team
    if exchange.model is not None:
        fields["model"] = exchange.model
    if (status := exchange.headers.get(CACHE_STATUS)) is not None:
        fields["cache"] = cache_word(status)
    fields["cost_usd"] = purchase.cost_micros / MICROS_PER_USD
    if exchange.saved_micros:
        fields["saved_usd"] = exchange.saved_micros / MICROS_PER_USD
    if purchase.upstream is not None:
        fields["upstream"] = purchase.upstream
        fields["upstream_seconds"] = round(purchase.upstream_seconds, 4)


def cache_word(status: str) -> str:
    """A Cache-Status in one word: `hit`, `stale`, `miss`, `partial`, `request`, …"""
    handling = status.removeprefix(_CACHE_NAME)
    if handling.startswith("hit"):
        return "stale" if "=stale" in handling else "hit"
    return handling.partition(";")[0].rpartition("=")[2]


def _add_error(fields: dict[str, Any], error: GatewayError) -> None:
    fields["error"] = _code(error)
    if isinstance(error, LimitExceeded):
        fields["limit"] = error.reason
        if error.scope is not None:
            fields["scope"] = error.scope


def _code(error: GatewayError) -> str:
    # Upstream's own code may quote the prompt or a name that it refuses.
    words = (error.code, error.type, "upstream_error")
    return next(str(word) for word in words if word and _WORD.fullmatch(word))
