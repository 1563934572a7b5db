"""The spans of a trace, as the rest of the gateway sees them. `otel` exports them.

There is a span for each request, each purchase, and each HTTP request that a purchase sends. The
parent of a new span is in the `TraceContext` that starts it: code inside a span passes on the one
that `inside` returns. Tracing is off by default: then there is no tracer for requests, and
`NO_TRACER` for the rest. `docs/reference/tracing.md` lists spans and attributes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final, Protocol, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr

from gateway.errors import GatewayError
from gateway.images import ImageRequest, Record, Usage
from gateway.trace_context import TraceContext


class TracingSettings(BaseModel):
    """The collector that gets the spans, and which spans it gets."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    endpoint: str
    """Of a collector: `http://host:4318`, without `/v1/traces`."""
    headers: Mapping[str, SecretStr] = Field(default_factory=dict)
    ca_file: Path | None = None
    sample_ratio: float = Field(default=1.0, ge=0, le=1)
    """Of the traces that begin at the gateway. For other traces the client has decided."""
    resource: Mapping[str, str] = Field(default_factory=dict)
    """Attributes of all spans of this worker."""
    upstream_url: str
    """The base URL that purchases are sent to."""


class PurchasedFor(Protocol):
    """The purchases of a request."""

    @property
    def cost_micros(self) -> int: ...


class RequestedImages(Protocol):
    """The fields of a `RequestContext` that the span of a request for images shows."""

    @property
    def record(self) -> Record: ...
    @property
    def purchase(self) -> PurchasedFor: ...
    @property
    def outcome(self) -> str: ...
    @property
    def followed_traces(self) -> Collection[str]: ...


class Span(AbstractContextManager["Span"], Protocol):
    """One span, which ends with its block."""

    def __enter__(self) -> Self: ...

    def inside(self, trace: TraceContext) -> TraceContext:
        """The trace context for the children of this span."""


class HttpSpan(Span, Protocol):
    """An HTTP request that the gateway sends."""

    def answered(self, status: int | None, *, error: str | None = None) -> None:
        """Notes the status of the response, if there was one, and the kind of error."""


class RequestSpan(Span, Protocol):
    """An HTTP request that a client sent."""

    def answered(self, status: int) -> None:
        """Notes the status of the response."""

    def failed(self, error: GatewayError) -> None:
        """Notes the error that the client got, also in a stream that had begun."""

    def requested_images(self, images: RequestedImages, *, cache_status: str | None) -> None:
        """Notes the outcome of a request for images, and links to the purchases of others."""


class PurchaseSpan(Protocol):
    """One purchase. It is exported once it is settled, so never if nothing was sent."""

    @property
    def traceparent(self) -> str | None:
        """Its ids, to which the spans of followers link; None without tracing."""

    def inside(self, trace: TraceContext) -> TraceContext:
        """The trace context for the children of this span."""

    def settled(self, record: Record, usage: Usage | None, *, error: str | None = None) -> None:
        """Ends the span with the ledger's record. `error` is the reason why the purchase failed."""


class Tracer(Protocol):
    """Starts spans."""

    def request(
        self,
        trace: TraceContext,
        request_id: str,
        *,
        method: str,
        path: str,
        route: str | None,
        scheme: str,
        host: str,
        client_address: str,
    ) -> RequestSpan:
        """The span of a client's request."""

    def purchase(
        self, trace: TraceContext, request: ImageRequest, record: Record, *, images: int
    ) -> PurchaseSpan:
        """The span of a purchase of `images` images."""

    def http_request(self, trace: TraceContext, method: str, url: str, *, resends: int) -> HttpSpan:
        """The span of an HTTP request that the gateway sends, after `resends` earlier attempts."""

    def recovery(self, purchase: str | None, record: Record) -> Span:
        """The span of finishing a dead worker's purchase, whose traceparent is `purchase`."""


class _NoSpan:
    traceparent: Final = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def inside(self, trace: TraceContext) -> TraceContext:
        return trace

    def answered(self, status: int | None, *, error: str | None = None) -> None:
        pass

    def failed(self, error: GatewayError) -> None:
        pass

    def requested_images(self, images: RequestedImages, *, cache_status: str | None) -> None:
        pass

    def settled(self, record: Record, usage: Usage | None, *, error: str | None = None) -> None:
        pass


NO_SPAN: Final = _NoSpan()


class _NoTracer:
    def request(self, *_: object, **__: object) -> RequestSpan:
        return NO_SPAN

    def purchase(self, *_: object, **__: object) -> PurchaseSpan:
        return NO_SPAN

    def http_request(self, *_: object, **__: object) -> HttpSpan:
        return NO_SPAN

    def recovery(self, *_: object, **__: object) -> Span:
        return NO_SPAN


NO_TRACER: Final[Tracer] = _NoTracer()
