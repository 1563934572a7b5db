"""Exports spans to an OpenTelemetry collector: OTLP over HTTP, in protobuf.

The only module that knows OpenTelemetry, which is the extra `otel`. `assembly` imports it if a
collector is configured, in each worker, because its thread would not survive the fork.

Names follow OpenTelemetry's semantic conventions 1.41: HTTP spans, which are stable, and spans of
generative AI, which are in development. The latter have no name for the operation yet, so it is
`image_generation`. Attributes that they do not define are `gateway.*`. No span has a prompt, a
query string, a header, or the path of an upstream's link.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import lru_cache, wraps
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import Any, Concatenate, Final, ParamSpec, Self, TypeVar

import requests
import structlog
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.sdk.version import __version__ as sdk_version
from opentelemetry.trace import (
    INVALID_SPAN,
    Link,
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    StatusCode,
    TraceFlags,
    TraceState,
    set_span_in_context,
)
from opentelemetry.trace import Span as ApiSpan
from opentelemetry.trace import Tracer as ApiTracer
from yarl import URL

from gateway import __version__
from gateway.conditions import Condition
from gateway.errors import ErrorCode, GatewayError
from gateway.images import ImageRequest, Record, Usage
from gateway.limits import MICROS_PER_USD
from gateway.net.guard import LinkBlocked
from gateway.redaction import Redactor
from gateway.trace_context import NO_TRACE_CONTEXT, TraceContext
from gateway.tracing import RequestedImages, TracingSettings

OPERATION: Final = "image_generation"

PROVIDER: Final = "openai"
"""The API that upstream speaks, also if another company runs it."""

QUEUE_SPANS: Final = 2048
"""Spans that wait for their export; a further one is dropped."""

BATCH_SPANS: Final = 512

EXPORT_EVERY_SECONDS: Final = 1.0

EXPORT_TIMEOUT_SECONDS: Final = 10.0
"""Of one batch, with its retries."""

FLUSH_SECONDS: Final = 3.0
"""How long a worker that ends waits for the last export."""

MAX_ATTRIBUTE: Final = 1024
"""Characters."""

MAX_ANSWER_BYTES: Final = 64 << 10
"""Of a collector's answer, which is not needed. The connection of a longer one is closed."""

_LIMITS: Final = SpanLimits(
    max_attributes=64,
    max_events=0,
    max_links=128,
    max_span_attributes=64,
    max_event_attributes=0,
    max_link_attributes=0,
    max_attribute_length=MAX_ATTRIBUTE,
    max_span_attribute_length=MAX_ATTRIBUTE,
)

_EXPORT_HEADERS: Final = frozenset(
    {
        *("accept", "accept-encoding", "connection", "content-encoding", "content-length"),
        *("content-type", "user-agent"),
    }
)
_METHODS: Final = frozenset(
    {"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE"}
)
_EXPORT_LOGGERS: Final = (
    "opentelemetry.exporter",
    "opentelemetry.sdk._shared_internal",
    "opentelemetry.sdk.trace.export",
)
_KNOWN_FLAGS: Final = 0x03
"""Sampled, and random trace id."""
_SERVER_ERROR: Final = 500
_CLIENT_ERROR: Final = 400
_ERROR_CODES: Final = frozenset(ErrorCode)
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}

log = structlog.get_logger(__name__)

_Place = TypeVar("_Place", bound="_Span")
_Given = ParamSpec("_Given")


@asynccontextmanager
async def open_tracer(settings: TracingSettings) -> AsyncIterator[Tracer]:
    """The tracer of a worker, whose spans a thread exports.

    A collector that is down delays nothing: spans beyond `QUEUE_SPANS` are dropped.
    """
    failed = Condition(log, "trace_export_failed", "trace_export_works", counted="failures")
    sdk_log = logging.getLogger("opentelemetry")
    handler, sdk_log.propagate = _ExportLog(failed, settings), False
    if not sdk_log.handlers:
        sdk_log.addHandler(logging.NullHandler())  # or lines after the end would be printed
    sdk_log.addHandler(handler)
    # All arguments are given: the SDK would read missing ones from the environment.
    provider = TracerProvider(
        sampler=ParentBased(TraceIdRatioBased(settings.sample_ratio)),
        resource=_resource(settings.resource),
        shutdown_on_exit=False,
        span_limits=_LIMITS,
    )
    provider.add_span_processor(
        BatchSpanProcessor(
            _ObservedExporter(_create_exporter(settings), failed),
            max_queue_size=QUEUE_SPANS,
            schedule_delay_millis=EXPORT_EVERY_SECONDS * 1000,
            max_export_batch_size=BATCH_SPANS,
            export_timeout_millis=EXPORT_TIMEOUT_SECONDS * 1000,
        )
    )
    try:
        tracer = provider.get_tracer("gateway", __version__)
        yield Tracer(tracer, URL(settings.upstream_url), failed)
    finally:
        # In a thread that is left behind after some seconds: a collector may hang.
        flushing = threading.Thread(target=provider.shutdown, name="trace flush", daemon=True)
        flushing.start()
        await asyncio.to_thread(flushing.join, FLUSH_SECONDS)
        sdk_log.removeHandler(handler)


def _create_exporter(settings: TracingSettings) -> OTLPSpanExporter:
    headers = {name: value.get_secret_value() for name, value in settings.headers.items()}
    return OTLPSpanExporter(
        f"{settings.endpoint}/v1/traces",
        headers=headers,
        timeout=EXPORT_TIMEOUT_SECONDS,
        compression=Compression.Gzip,
        session=_Session(headers, settings.ca_file),
    )


class _Session(requests.Session):
    """Sends what the settings name, and reads no more of an answer than its head."""

    def __init__(self, headers: Mapping[str, str], ca_file: Path | None) -> None:
        super().__init__()
        self.trust_env = False  # neither a proxy nor credentials that the settings do not name
        self._allowed = _EXPORT_HEADERS | {name.lower() for name in headers}
        self._authorities = True if ca_file is None else str(ca_file)

    def send(self, request: requests.PreparedRequest, **options: Any) -> requests.Response:
        # The exporter adds those of the environment, which the settings may overrule.
        for name in [name for name in request.headers if name.lower() not in self._allowed]:
            del request.headers[name]
        deadline = time.monotonic() + EXPORT_TIMEOUT_SECONDS
        response = super().send(request, **{**options, "stream": True, "verify": self._authorities})
        _drain(response, deadline)
        if HTTPStatus.MULTIPLE_CHOICES <= response.status_code < HTTPStatus.BAD_REQUEST:
            # The exporter takes it for a success. It is not followed: the headers are secrets.
            raise requests.TooManyRedirects(
                f"the collector redirects with status {response.status_code}: tracing.endpoint is "
                "not its address"
            )
        return response


def _drain(response: requests.Response, deadline: float) -> None:
    """Reads a short answer, so that its connection can be used again."""
    size = 0
    try:
        while chunk := response.raw.read1(MAX_ANSWER_BYTES):
            size += len(chunk)
            if size > MAX_ANSWER_BYTES or time.monotonic() > deadline:
                break
        else:
            return
    except Exception:  # noqa: BLE001, S110 - its head has said whether the export succeeded
        pass
    response.close()


def _resource(attributes: Mapping[str, str]) -> Resource:
    return Resource(
        {
            "telemetry.sdk.name": "opentelemetry",
            "telemetry.sdk.language": "python",
            "telemetry.sdk.version": sdk_version,
            "service.version": __version__,
            **attributes,
        }
    )


class _ObservedExporter(SpanExporter):
    """Notes in the log when exports begin to fail, and when they succeed again."""

    def __init__(self, exporter: SpanExporter, failed: Condition) -> None:
        self._exporter = exporter
        self._failed = failed

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = self._exporter.export(spans)
        if result is SpanExportResult.SUCCESS:
            self._failed.ends()
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()


class _ExportLog(logging.Handler):
    """Turns the SDK's log lines into our event, which is not repeated for each of them."""

    def __init__(self, failed: Condition, settings: TracingSettings) -> None:
        super().__init__(logging.WARNING)
        self._failed = failed
        values = [value.get_secret_value() for value in settings.headers.values()]
        # A collector may quote them, also without the `Bearer`.
        self._redactor = Redactor(word for value in values for word in (value, *value.split()))

    def emit(self, record: logging.LogRecord) -> None:
        # Others are about spans, and quote a client's header.
        if not record.name.startswith(_EXPORT_LOGGERS):
            return
        # The detail is the text without its values, which differ with every failure.
        reason = self._redactor.text(record.getMessage())
        self._failed.occurs(str(record.msg), reason=reason[:MAX_ATTRIBUTE])


# ── spans ───────────────────────────────────────────────────────────────────────────────────


def _harmless(
    method: Callable[Concatenate[_Place, _Given], None],
) -> Callable[Concatenate[_Place, _Given], None]:
    """The method, whose faults neither fail a request nor lose a purchase: they are logged."""

    @wraps(method)
    def contained(self: _Place, /, *args: _Given.args, **kwargs: _Given.kwargs) -> None:
        try:
            method(self, *args, **kwargs)
        except Exception as fault:  # noqa: BLE001 - whatever is wrong, the request continues
            _note_fault(self._failed, fault)

    return contained


def _note_fault(failed: Condition, fault: Exception) -> None:
    # Only its class: its message may quote an attribute.
    name = type(fault).__qualname__
    failed.occurs(name, reason=f"a span could not be recorded: {name}")


class Tracer:
    """Starts spans, as `gateway.tracing.Tracer`."""

    def __init__(self, tracer: ApiTracer, upstream: URL, failed: Condition) -> None:
        self._tracer = tracer
        self._failed = failed
        self._upstream = {"server.address": upstream.host, "server.port": upstream.port}

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
    ) -> _RequestSpan:
        known = method if method in _METHODS else "_OTHER"
        address, port = _split(host, scheme)
        attributes = {
            "http.request.method": known,
            "http.request.method_original": None if known == method else method,
            "url.path": path,
            "url.scheme": scheme,
            "http.route": route,
            "server.address": address,
            "server.port": port,
            "client.address": client_address or None,
            "gateway.request_id": request_id,
        }
        name = f"{'HTTP' if known == '_OTHER' else method} {route or ''}".rstrip()
        return _RequestSpan(self._start(trace, name, SpanKind.SERVER, attributes), self._failed)

    def purchase(
        self, trace: TraceContext, request: ImageRequest, record: Record, *, images: int
    ) -> _PurchaseSpan:
        attributes = {
            "gen_ai.operation.name": OPERATION,
            "gen_ai.provider.name": PROVIDER,
            "gen_ai.request.model": request.model,
            "gen_ai.request.choice.count": images if images != 1 else None,
            "gen_ai.request.stream": request.stream or None,
            "gen_ai.output.type": "image",
            **self._upstream,
        }
        name = f"{OPERATION} {request.model}"
        return _PurchaseSpan(self._start(trace, name, SpanKind.CLIENT, attributes), self._failed)

    def http_request(
        self, trace: TraceContext, method: str, url: str, *, resends: int
    ) -> _HttpSpan:
        parts = URL(url)
        attributes = {
            "http.request.method": method,
            "url.full": url,
            "server.address": parts.host,
            "server.port": parts.port,
            "http.request.resend_count": resends or None,
        }
        return _HttpSpan(self._start(trace, method, SpanKind.CLIENT, attributes), self._failed)

    def recovery(self, purchase: str | None, record: Record) -> _Span:
        links = () if purchase is None else (Link(_span_context(purchase, None)),)
        name, attributes = "recover purchase", _of_record(record)
        span = self._start(NO_TRACE_CONTEXT, name, SpanKind.INTERNAL, attributes, links=links)
        return _Span(span, self._failed)

    def _start(
        self,
        trace: TraceContext,
        name: str,
        kind: SpanKind,
        attributes: Mapping[str, Any],
        *,
        links: Sequence[Link] = (),
    ) -> ApiSpan:
        try:
            parent = Context()  # explicitly: the SDK would take the span of the current task
            if trace.traceparent is not None:
                remote = NonRecordingSpan(_span_context(trace.traceparent, trace.tracestate))
                parent = set_span_in_context(remote, parent)
            return self._tracer.start_span(name, parent, kind, _present(attributes), links)
        except Exception as fault:  # noqa: BLE001 - whatever is wrong, the request continues
            _note_fault(self._failed, fault)
            return INVALID_SPAN


class _Span:
    def __init__(self, span: ApiSpan, failed: Condition) -> None:
        self._span = span
        self._failed = failed

    def __enter__(self) -> Self:
        return self

    @_harmless
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # Not the error itself: its message may quote a prompt.
        if error is not None:
            self._fail(f"{type(error).__module__}.{type(error).__qualname__}")
        self._span.end()

    @property
    def traceparent(self) -> str | None:
        """Its ids, in W3C form; None if the SDK is disabled."""
        own = self._span.get_span_context()
        if not own.is_valid:
            return None
        return f"00-{own.trace_id:032x}-{own.span_id:016x}-{own.trace_flags:02x}"

    def inside(self, trace: TraceContext) -> TraceContext:
        return replace(trace, traceparent=self.traceparent or trace.traceparent)

    def _set(self, attributes: Mapping[str, Any]) -> None:
        self._span.set_attributes(_present(attributes))

    def _fail(self, kind: str) -> None:
        self._span.set_attribute("error.type", kind)
        self._span.set_status(StatusCode.ERROR)


class _HttpSpan(_Span):
    """An HTTP request that the gateway sends."""

    @_harmless
    def answered(self, status: int | None, *, error: str | None = None) -> None:
        self._set({"http.response.status_code": status})
        if error is not None:
            self._fail(error)
        elif status is not None and status >= _CLIENT_ERROR:
            self._fail(str(status))

    @_harmless
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if isinstance(error, LinkBlocked):
            self._fail(error.reason)
            error = None
        elif isinstance(error, asyncio.CancelledError):
            self._fail("timeout")  # its deadline has passed
            error = None
        super().__exit__(kind, error, traceback)


class _RequestSpan(_Span):
    """An HTTP request that a client sent."""

    @_harmless
    def answered(self, status: int) -> None:
        self._set({"http.response.status_code": status})

    @_harmless
    def failed(self, error: GatewayError) -> None:
        if error.code in _ERROR_CODES:  # other codes may be upstream's own text
            self._set({"gateway.error_code": str(error.code)})
        if error.status >= _SERVER_ERROR:
            self._fail(str(error.status))

    @_harmless
    def requested_images(self, images: RequestedImages, *, cache_status: str | None) -> None:
        self._set(_of_record(images.record))
        self._set(
            {
                "gateway.outcome": images.outcome,
                "gateway.cache.status": cache_status,
                "gateway.cost_usd": images.purchase.cost_micros / MICROS_PER_USD,
            }
        )
        for followed in images.followed_traces:
            self._span.add_link(_span_context(followed, None))


class _PurchaseSpan(_Span):
    @_harmless
    def settled(self, record: Record, usage: Usage | None, *, error: str | None = None) -> None:
        """Ends the span with the ledger's record."""
        self._set(_of_record(record))
        self._set(
            {
                "gateway.purchase_id": record.id,
                "gateway.upstream": record.upstream,
                "gateway.outcome": record.outcome,
                "gateway.cost_usd": record.cost_micros / MICROS_PER_USD,
            }
        )
        if usage is not None:
            self._set(
                {
                    "gen_ai.usage.input_tokens": usage.text_in + usage.image_in,
                    "gen_ai.usage.output_tokens": usage.image_out + usage.text_out,
                }
            )
        if error is not None:
            self._fail(error)
        self._span.end()


def _of_record(record: Record) -> dict[str, Any]:
    """The attributes of a request for images, and of its purchase."""
    return _present(
        {
            "gen_ai.request.model": record.model,
            "gateway.request_id": record.request_id,
            "gateway.key": record.key,
            "gateway.team": record.team,
            "gateway.size": record.size,
            "gateway.quality": record.quality,
            "gateway.fingerprint": record.fingerprint,
        }
    )


def _present(attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in attributes.items() if value is not None}


def _span_context(traceparent: str, tracestate: str | None) -> SpanContext:
    """A valid traceparent, as OpenTelemetry has it."""
    _, trace_id, span_id, flags = traceparent.split("-")[:4]
    return SpanContext(
        int(trace_id, 16),
        int(span_id, 16),
        is_remote=True,
        trace_flags=TraceFlags(int(flags, 16) & _KNOWN_FLAGS),
        trace_state=TraceState.from_header([tracestate]) if tracestate else None,
    )


@lru_cache(maxsize=64)
def _split(host: str, scheme: str) -> tuple[str, int | None]:
    """The name and the port of a valid `Host`."""
    name, colon, port = host.rpartition(":")
    if not colon or port.endswith("]"):  # an IPv6 address without a port
        name, port = host, ""
    return name.strip("[]"), int(port) if port else _DEFAULT_PORTS.get(scheme)
