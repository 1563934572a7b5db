"""What happens around every handler."""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Final

import orjson
import structlog
from aiohttp import hdrs, web

from gateway.api.services import SERVICES
from gateway.errors import INVALID_REQUEST, MAX_ECHO, GatewayError

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

API_VERSION: Final = "2020-10-01"
SERVER: Final = "image-gateway"
"""What `Server` says: no library, no version."""
BAD_REQUEST: Final = HTTPStatus.BAD_REQUEST
CLOSING: Final = frozenset({HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.REQUEST_ENTITY_TOO_LARGE})
"""After these the rest of the request is not read."""

log = structlog.get_logger("gateway.access_log")


@dataclass(slots=True)
class Exchange:
    """What is learnt of one request on its way, for its headers, the metrics and the log."""

    request_id: str
    started: float
    """By the monotonic clock, when its head had been read."""
    headers: dict[str, str] = field(default_factory=dict)
    """What a handler wants on the answer, whatever it will be."""
    key_name: str | None = None
    model: str | None = None
    outcome: str | None = None
    has_begun: bool = False
    """The answer; there can be no other one."""


EXCHANGE: Final = web.RequestKey("passage", Exchange)


# ── request id and the headers of every answer ──────────────────────────────────────────────


def new_request_id() -> str:
    """As OpenAI writes it: `req_` and 32 hex digits (WIRE §3)."""
    return f"req_{secrets.token_hex(16)}"


async def stamp(request: web.Request, response: web.StreamResponse) -> None:
    """Puts onto every answer, just before it begins, what every answer carries."""
    exchange = request.get(EXCHANGE)
    if exchange is None:
        return  # refused before it came this far, and stamped there: `api/connection`
    exchange.has_begun = True
    seconds = time.monotonic() - exchange.started
    headers = response.headers
    headers["x-request-id"] = exchange.request_id
    headers["openai-processing-ms"] = str(int(seconds * 1000))
    headers["openai-version"] = API_VERSION
    headers[hdrs.SERVER] = SERVER
    headers.update(exchange.headers)
    if request.app[SERVICES].health.closes_connections:
        response.force_close()
        headers[hdrs.CONNECTION] = "close"  # aiohttp has set its own headers by now


# ── observe ─────────────────────────────────────────────────────────────────────────────────


@web.middleware
async def observe(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Gives the request its id, counts the answer and writes one line of the access log."""
    exchange = request[EXCHANGE] = Exchange(new_request_id(), time.monotonic())
    metrics = request.app[SERVICES].metrics.requests
    metrics.started()
    try:
        response = await handler(request)
    finally:
        metrics.ended()
    seconds = time.monotonic() - exchange.started
    endpoint = (request.match_info.route.name or "none").partition(".")[0]
    outcome = exchange.outcome or ("ok" if response.status < BAD_REQUEST else "refused")
    metrics.answered(
        endpoint=endpoint,
        model=exchange.model,
        status=response.status,
        outcome=outcome,
        seconds=seconds,
    )
    log.info(
        "answered",
        request_id=exchange.request_id,
        method=request.method,
        endpoint=endpoint,
        status=response.status,
        outcome=outcome,
        key=exchange.key_name,
        model=exchange.model,
        seconds=round(seconds, 4),
        retry_count=_retry_count(request),
        pid=os.getpid(),
    )
    return response


def _retry_count(request: web.Request) -> int | None:
    """How often an SDK has tried before, by its own word (WIRE §3)."""
    said = request.headers.get("x-stainless-retry-count", "")[:3]
    return int(said) if said.isascii() and said.isdecimal() else None


# ── errors ──────────────────────────────────────────────────────────────────────────────────


@web.middleware
async def answer_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turns every error into OpenAI's JSON envelope (WIRE §2)."""
    try:
        return await handler(request)
    except GatewayError as error:
        failure = error
    except web.HTTPException as error:
        failure = _translated(request, error)
    except (ConnectionError, TimeoutError):
        raise
    except Exception:
        log.exception("handler_failed", request_id=request[EXCHANGE].request_id)
        failure = GatewayError("The gateway had an error while processing your request.")
    if request[EXCHANGE].has_begun:
        raise failure
    return error_response(failure)


def error_response(error: GatewayError) -> web.Response:
    """An error as an answer."""
    response = web.Response(
        body=_encode(error.body),
        status=error.status,
        content_type="application/json",
        headers={**error.headers, "x-gateway-error-source": error.source},
    )
    if error.status in CLOSING:
        response.force_close()
    return response


def _encode(body: Mapping[str, Any]) -> bytes:
    """An error body; bytes of a header that it quotes and that are not UTF-8 become `?`."""
    options = orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE
    try:
        return orjson.dumps(body, option=options)
    except orjson.JSONEncodeError:
        readable = json.dumps(body, ensure_ascii=False).encode("utf-8", "replace")
        return orjson.dumps(orjson.loads(readable), option=options)


def _translated(request: web.Request, error: web.HTTPException) -> GatewayError:
    """Aiohttp's own refusals, as WIRE §2 rows 34 to 36 word them."""
    shown = f"{request.method} {request.path[:MAX_ECHO]}"
    if isinstance(error, web.HTTPMethodNotAllowed):
        return GatewayError(
            f"Not allowed to {request.method} on {request.path[:MAX_ECHO]}. "
            "(HINT: Perhaps you meant to use a different HTTP method?)",
            status=405,
            type=INVALID_REQUEST,
            headers={hdrs.ALLOW: ", ".join(sorted(error.allowed_methods))},
        )
    if isinstance(error, web.HTTPNotFound) and request.path.lstrip("/").startswith("v1/"):
        return GatewayError(f"Invalid URL ({shown})", status=404, type=INVALID_REQUEST)
    if isinstance(error, web.HTTPNotFound):
        return GatewayError(
            f"Unknown request URL: {shown}. Please check the URL for typos, or see the docs at "
            "https://platform.openai.com/docs/api-reference/.",
            status=404,
            type=INVALID_REQUEST,
            code="unknown_url",
        )
    return GatewayError(error.reason, status=error.status, type=INVALID_REQUEST)
