"""An OpenTelemetry collector for tests: takes OTLP over HTTP, and keeps what it receives."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1 import trace_pb2

from tests.waiting import eventually


@dataclass(frozen=True)
class Exported:
    """A span as it was exported."""

    name: str
    kind: str
    """`SERVER`, `CLIENT` or `INTERNAL`."""
    trace_id: str
    span_id: str
    parent_id: str
    links: frozenset[tuple[str, str]]
    """The trace and the span of each link."""
    attributes: Mapping[str, Any]
    is_error: bool
    started: int
    """Nanoseconds since 1970, as `ended`."""
    ended: int
    trace_state: str
    resource: Mapping[str, Any]

    @property
    def place(self) -> tuple[str, str]:
        """The trace and the span, as a link has them."""
        return self.trace_id, self.span_id

    @property
    def error_type(self) -> str | None:
        return self.attributes.get("error.type")


@dataclass
class Collector:
    """What was received, and how it is answered."""

    url: str = ""
    statuses: list[int] = field(default_factory=list)
    """Of the next answers; then 200."""
    reason: str | None = None
    """Of those answers."""
    hangs: bool = False
    answers_forever: bool = False
    answered_bytes: int = 0
    """Of an answer without an end."""
    bodies: list[bytes] = field(default_factory=list)
    headers: list[Mapping[str, str]] = field(default_factory=list)
    has_ended: asyncio.Event = field(default_factory=asyncio.Event)

    async def receive(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        self.headers.append(request.headers)
        if self.hangs:
            await self.has_ended.wait()
        if self.statuses:
            return web.Response(status=self.statuses.pop(0), reason=self.reason)
        self.bodies.append(body)
        if self.answers_forever:
            return await self._answer_forever(request)
        return web.Response(content_type="application/x-protobuf")

    async def _answer_forever(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while not self.has_ended.is_set():
            await response.write(bytes(1 << 16))
            self.answered_bytes += 1 << 16
        return response

    def spans(self, name: str = "") -> list[Exported]:
        """Those whose name begins so, by their start."""
        found = [span for body in self.bodies for span in _read(body)]
        return sorted((s for s in found if s.name.startswith(name)), key=lambda span: span.started)

    async def until(self, look: Callable[[], Any]) -> Any:
        """Waits until `look` finds what it needs among the spans."""

        def find() -> Any:
            try:
                return look()
            except ValueError:  # fewer or more than it unpacks
                return None

        return await eventually(find)

    async def one(self, name: str) -> Exported:
        """The only span whose name begins so."""

        def look() -> Exported:
            (span,) = self.spans(name)
            return span

        return await self.until(look)


@asynccontextmanager
async def run_collector() -> AsyncIterator[Collector]:
    """A collector on a free port."""
    collector = Collector()
    app = web.Application(client_max_size=64 << 20)
    app.router.add_post("/v1/traces", collector.receive)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        collector.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        yield collector
    finally:
        collector.has_ended.set()
        await runner.cleanup()


def _read(body: bytes) -> list[Exported]:
    message = ExportTraceServiceRequest()
    message.ParseFromString(body)
    return [
        _exported(span, _attributes(of_resource.resource.attributes))
        for of_resource in message.resource_spans
        for of_scope in of_resource.scope_spans
        for span in of_scope.spans
    ]


def _exported(span: trace_pb2.Span, resource: Mapping[str, Any]) -> Exported:
    return Exported(
        span.name,
        trace_pb2.Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"),
        span.trace_id.hex(),
        span.span_id.hex(),
        span.parent_span_id.hex(),
        links=frozenset((link.trace_id.hex(), link.span_id.hex()) for link in span.links),
        attributes=_attributes(span.attributes),
        is_error=span.status.code == trace_pb2.Status.STATUS_CODE_ERROR,
        started=span.start_time_unix_nano,
        ended=span.end_time_unix_nano,
        trace_state=span.trace_state,
        resource=resource,
    )


def _attributes(pairs: Any) -> dict[str, Any]:
    def value(pair: KeyValue) -> Any:
        return getattr(pair.value, pair.value.WhichOneof("value"))

    return {pair.key: value(pair) for pair in pairs}
