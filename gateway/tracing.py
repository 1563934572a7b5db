"""The spans of a trace, as the rest of the gateway sees them. `otel` exports them.

There is a span for each request, each purchase, and each HTTP request that a purchase sends. The
place in the trace travels with the `TraceContext`: what happens inside of a span gets the one that
`inside` returns. Tracing is off by default: then there is no tracer for requests, and `NO_TRACER`
for the rest. Spans and attributes are listed in `docs/reference/tracing.md`.
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
    """Where spans are sent to, and which ones."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    endpoint: str
    """Of a collector: `http://host:4318`, without `/v1/traces`."""
    headers: Mapping[str, SecretStr] = Field(default_factory=dict)
    ca_file: Path | None = None
    sample_ratio: float = Field(default=1.0, ge=0, le=1)
    """Of the traces that begin here. In any other the client has decided."""
    resource: Mapping[str, str] = Field(default_factory=dict)
    """Attributes of all spans of this worker."""
    upstream_url: str
    """The base URL that purchases are sent to."""


class PurchasedFor(Protocol):
    """What a request's purchases came to."""

    @property
    def cost_micros(self) -> int: ...


class RequestedImages(Protocol):
    """What the span of a request for images shows; a `RequestContext` has it."""

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
        """The trace context of what happens inside of this span."""


class HttpSpan(Span, Protocol):
    """A request that is sent."""

    def answered(self, status: int | None, *, error: str | None = None) -> None:
        """Notes the status of the response, if there was one, and the kind of error."""


class RequestSpan(Span, Protocol):
    """A request that a client sent."""

    def answered(self, status: int) -> None:
        """Notes the status of the response."""

    def failed(self, error: GatewayError) -> None:
        """Notes the error that it was answered with, also in a stream that had begun."""

    def asked_for(self, images: RequestedImages, *, cache_status: str | None) -> None:
        """Notes the outcome of a request for images, and links to the purchases of others."""


class PurchaseSpan(Protocol):
    """One purchase. It is exported once it is settled, so never if nothing was sent."""

    @property
    def traceparent(self) -> str | None:
        """Where it stands in its trace, for the spans of followers; None without tracing."""

    def inside(self, trace: TraceContext) -> TraceContext:
        """The trace context of what happens inside of this span."""

    def settled(self, record: Record, usage: Usage | None, *, error: str | None = None) -> None:
        """Ends it with the ledger's record. `error` is the reason why it failed."""


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

    def call(self, trace: TraceContext, method: str, url: str, *, resends: int) -> HttpSpan:
        """The span of a request that is sent, after so many others for the same purpose."""

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

    def asked_for(self, images: RequestedImages, *, cache_status: str | None) -> None:
        pass

    def settled(self, record: Record, usage: Usage | None, *, error: str | None = None) -> None:
        pass


NO_SPAN: Final = _NoSpan()


class _NoTracer:
    def request(self, *_: object, **__: object) -> RequestSpan:
        return NO_SPAN

    def purchase(self, *_: object, **__: object) -> PurchaseSpan:
        return NO_SPAN

    def call(self, *_: object, **__: object) -> HttpSpan:
        return NO_SPAN

    def recovery(self, *_: object, **__: object) -> Span:
        return NO_SPAN


NO_TRACER: Final[Tracer] = _NoTracer()
