"""Around every handler: the request id, metrics, the access log, and errors as responses."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Final

import structlog
from aiohttp import hdrs, web

from gateway.api.access_log import NO_ENDPOINT, log_request
from gateway.api.cors import CORS, Cors
from gateway.api.exchange import API_VERSION, EXCHANGE, SERVER, Exchange
from gateway.api.http.json import error_response
from gateway.api.services import Services
from gateway.api.unknown_path import KNOWN_PATHS
from gateway.errors import (
    INVALID_REQUEST,
    MAX_ECHO,
    ErrorCode,
    GatewayError,
    InternalError,
    detach,
)
from gateway.ids import new_request_id
from gateway.trace_context import read_trace_context

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

BAD_REQUEST: Final = HTTPStatus.BAD_REQUEST

_API: Final = ("v1/", "openai/")
"""The starts of paths at which the images API answers an unknown one."""

_SECRET: Final = re.compile(r"[A-Za-z0-9_-]{40,}")
"""The signature of a link, or a key, in a path."""

log = structlog.get_logger("gateway.access_log")


class Observing:
    """Gives the requests of one address their ids, and counts and logs them.

    Its services are arguments: to find them in the application takes a third of its time.
    """

    def __init__(self, services: Services, cors: Cors) -> None:
        self._services = services
        self._cors = cors

    async def add_headers(self, request: web.Request, response: web.StreamResponse) -> None:
        """Adds the headers of every response and those of the exchange, just before it begins.

        A response that does not say how it may be cached contains a key, a link, or a part of one,
        or is for one client alone: no cache stores it.
        """
        try:
            exchange = request[EXCHANGE]
        except KeyError:
            return  # malformed HTTP never came to `observe`; `http/connection` adds its headers
        exchange.has_begun = True
        seconds = time.monotonic() - exchange.started_at
        headers = response.headers
        headers["x-request-id"] = exchange.request_id
        headers["openai-processing-ms"] = str(int(seconds * 1000))
        headers["openai-version"] = API_VERSION
        headers[hdrs.SERVER] = SERVER
        headers.update(exchange.headers)
        headers.setdefault(hdrs.CACHE_CONTROL, "no-store")
        # Last: it lists the others.
        if self._cors.is_on:
            self._cors.add_headers(request.path, request.headers.get(hdrs.ORIGIN), headers)
        if self._services.health.closes_connections:
            response.force_close()
            headers[hdrs.CONNECTION] = "close"  # aiohttp has set its own headers by now

    @web.middleware
    async def observe(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Gives the request its id, counts it, and writes one line of the access log."""
        services, peer, headers = self._services, request.remote or "", request.headers
        metrics, proxies = services.metrics.requests, services.trusted_proxies
        started_at = time.monotonic()
        exchange = request[EXCHANGE] = Exchange(
            new_request_id(),
            started_at,
            proxies.client_address(peer, headers),
            client_scheme=proxies.client_scheme(peer, headers),
            trace=read_trace_context(headers),
        )
        endpoint = (request.match_info.route.name or NO_ENDPOINT).partition(".")[0]
        metrics.started()
        try:
            response = await handler(request)
        except BaseException as fault:
            # The handler was cancelled, or it failed when its response had begun.
            is_cancelled = isinstance(fault, asyncio.CancelledError)
            log_request(
                request,
                exchange,
                endpoint=endpoint,
                outcome="failed" if is_cancelled else exchange.outcome or "failed",
                seconds=time.monotonic() - started_at,
                error=_interruption(fault),
            )
            exchange.context = None  # it refers to the request, which refers to the exchange
            raise
        finally:
            metrics.finished()
        seconds = time.monotonic() - started_at
        outcome = exchange.outcome or ("ok" if response.status < BAD_REQUEST else "refused")
        metrics.answered(
            endpoint=endpoint,
            model=exchange.model,
            status=response.status,
            outcome=outcome,
            seconds=seconds,
        )
        log_request(
            request,
            exchange,
            endpoint=endpoint,
            outcome=outcome,
            seconds=seconds,
            response=response,
        )
        exchange.context = None
        return response


def _interruption(fault: BaseException) -> str | None:
    """Why there is no complete response; None for an error that has a code of its own."""
    if isinstance(fault, asyncio.CancelledError):
        return "cancelled"
    if isinstance(fault, ConnectionError):
        return "disconnected"
    return "timeout" if isinstance(fault, TimeoutError) else None


@web.middleware
async def answer_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turns every error into a JSON response: `docs/reference/errors.md`."""
    # Not raised by aiohttp's handler: the request refers to this error, which would refer to it.
    if (no_route := request.match_info.http_exception) is not None:
        # Before authentication: a preflight carries no key. No route has the method OPTIONS.
        if (allowed := request.app[CORS].preflight_headers(request)) is not None:
            return web.Response(status=HTTPStatus.NO_CONTENT, headers=allowed)
        return _answer(request[EXCHANGE], _translate(request, no_route))
    try:
        return await handler(request)
    except GatewayError as raised:
        error = raised
    except web.HTTPException as raised:
        error = _translate(request, detach(raised))
    except (ConnectionError, TimeoutError):
        raise
    except Exception as raised:
        log.exception("handler_failed", request_id=request[EXCHANGE].request_id)
        detach(raised)
        error = InternalError()
    # A second response would become part of the body of the first. The error closes the connection.
    if request[EXCHANGE].has_begun:
        request[EXCHANGE].error = error.copy()  # it is raised: its frames would hold the request
        raise error
    return _answer(request[EXCHANGE], detach(error))


def _answer(exchange: Exchange, error: GatewayError) -> web.StreamResponse:
    exchange.error = error
    return error_response(error, exchange.request_id)


def shown_path(request: web.Request) -> str:
    """The path without secrets: the client may log it, and so may everything between."""
    return _SECRET.sub("***", request.path)[:MAX_ECHO]


def _translate(request: web.Request, error: web.HTTPException) -> GatewayError:
    """An error of aiohttp's router, worded as `docs/reference/images-api.md#paths-and-methods`."""
    path = shown_path(request)
    if isinstance(error, web.HTTPMethodNotAllowed):
        return GatewayError(
            f"Not allowed to {request.method} on {path}. "
            "(HINT: Perhaps you meant to use a different HTTP method?)",
            status=405,
            type=INVALID_REQUEST,
            headers={hdrs.ALLOW: ", ".join(sorted(error.allowed_methods))},
        )
    if isinstance(error, web.HTTPNotFound) and request.path.lstrip("/").startswith(_API):
        return GatewayError(
            f"Invalid URL ({request.method} {path})", status=404, type=INVALID_REQUEST
        )
    if isinstance(error, web.HTTPNotFound):
        return GatewayError(
            request.app[KNOWN_PATHS].explain(request.method, path),
            type=INVALID_REQUEST,
            code=ErrorCode.UNKNOWN_URL,
        )
    return GatewayError(error.reason, status=error.status, type=INVALID_REQUEST)
