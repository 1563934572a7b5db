"""The span of each request of a client or an operator. Health checks and scrapes have none.

A middleware of its own, because an application without tracing does not have it.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

from aiohttp import web

from gateway.api.access_log import cache_word
from gateway.api.exchange import EXCHANGE
from gateway.api.http.host import requested_host
from gateway.api.middleware import Handler, shown_path
from gateway.api.rendering import CACHE_STATUS
from gateway.api.services import SERVICES

UNTRACED: Final = frozenset({"healthz", "readyz", "metrics"})
"""Endpoints that monitoring calls every few seconds."""

_SEPARATOR: Final = re.compile(r"\{_\d+\}")


@web.middleware
async def trace_request(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Runs the handler inside the request's span."""
    tracer, route = request.app[SERVICES].tracer, request.match_info.route
    if tracer is None or route.name in UNTRACED:
        return await handler(request)
    exchange, resource = request[EXCHANGE], route.resource
    with tracer.request(
        exchange.trace,
        exchange.request_id,
        method=request.method,
        # An unknown path is the client's text: a prompt, if it takes this for another service.
        path="/***" if route.name is None else shown_path(request),
        route=None if resource is None else _template(resource.canonical),
        scheme=exchange.client_scheme or request.scheme,
        host=requested_host(request),
        client_address=exchange.client_address,
    ) as span:
        exchange.trace = span.inside(exchange.trace)
        try:
            response = await handler(request)
        finally:
            if exchange.context is not None:
                status = exchange.headers.get(CACHE_STATUS)
                word = None if status is None else cache_word(status)
                span.requested_images(exchange.context, cache_status=word)
            if exchange.error is not None:
                span.failed(exchange.error)
        span.answered(response.status)
        return response


@lru_cache(maxsize=256)
def _template(canonical: str) -> str:
    """A route as the docs write it: `/v1/models/{model}`. `routes` allows doubled slashes too."""
    path = canonical.replace("{_prefix}", "v1/").replace("{_tail}", "")
    return _SEPARATOR.sub("/", path)
