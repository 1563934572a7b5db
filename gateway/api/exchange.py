"""One HTTP exchange, and the identity that every response carries.

An `Exchange` holds the facts of a request that its response headers, the metrics and the log need.
The request for images inside it is a `RequestContext`, which knows no HTTP.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from aiohttp import web

from gateway.errors import GatewayError
from gateway.proxy.context import RequestContext
from gateway.trace_context import NO_TRACE_CONTEXT, TraceContext

API_VERSION: Final = "2020-10-01"
"""`openai-version`, as the images API sends it."""

SERVER: Final = "image-gateway"
"""The `Server` header: no library, no version."""


@dataclass
class Exchange:
    """A request, from its head to its response."""

    request_id: str
    started_at: float
    """On the monotonic clock, when the head had been read."""
    client_address: str
    """Behind trusted proxies that of their client; empty if there is no address."""
    client_scheme: str | None = None
    """`http` or `https`, if a trusted proxy says which one the client used."""
    trace: TraceContext = NO_TRACE_CONTEXT
    # Learnt later: as in `RequestContext`, a default costs nothing.
    headers: dict[str, str] = field(default_factory=dict, init=False)
    """Headers for the response, also if it is an error."""
    key_name: str | None = field(default=None, init=False)
    model: str | None = field(default=None, init=False)
    outcome: str | None = field(default=None, init=False)
    is_of_admin: bool = field(default=False, init=False)
    """An admin sent it in the dashboard."""
    context: RequestContext | None = field(default=None, init=False)
    """Of an image request, until it is logged."""
    saved_micros: int = field(default=0, init=False)
    """The original cost of the images that it got without buying them."""
    error: GatewayError | None = field(default=None, init=False)
    """The error that it was answered with."""
    body_bytes: int = field(default=0, init=False)
    """Bytes of an image response that were sent, or are about to be."""
    has_begun: bool = field(default=False, init=False)
    """The response has begun, so there can be no other one."""


EXCHANGE: Final = web.RequestKey("exchange", Exchange)
