"""The client of one account at upstream: its requests, its answers and its circuit breaker.

Which accounts a purchase asks, its deadline and its retries are `attempts`. URLs, request bodies
and the reading of responses are the dialect, connections are `session`. `purchasing` checks the
bytes of images.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Final

import aiohttp
import structlog
from aiohttp import hdrs
from yarl import URL

from gateway.conditions import Condition
from gateway.errors import Charge, UpstreamFailure, detach
from gateway.failure_report import FailureReport, Reason
from gateway.images import ImageRequest, PartialImage, UpstreamAnswer
from gateway.net.complete_body import take_complete
from gateway.net.sse import Event
from gateway.net.tls import create_tls
from gateway.tasks import Turns
from gateway.trace_context import TraceContext
from gateway.tracing import NO_TRACER, Tracer
from gateway.upstream import failures, openai
from gateway.upstream.attempts import Attempts, Candidate, StreamHandlers
from gateway.upstream.breaker import Breaker, Permit
from gateway.upstream.check_request import CheckReply, send_check_request
from gateway.upstream.connection import AnswerRejected
from gateway.upstream.dialect import Dialect, ParsedEvent
from gateway.upstream.direct import post
from gateway.upstream.observer import Observer, Pace, Unobserved
from gateway.upstream.outcomes import Answered, Failed, Outcome, PreparedRequest, Reply
from gateway.upstream.relaying import Relay
from gateway.upstream.session import (
    MEBIBYTE,
    ClientSettings,
    ErrorResponse,
    SendState,
    TrackedBody,
    open_session,
)
from gateway.upstream.stream import StreamReader, read_body

_ENVELOPE_BYTES: Final = MEBIBYTE
"""Allowance for everything in an answer that is not base64."""
_MAX_ERROR_BYTES: Final = MEBIBYTE
_ERROR_BODY_SECONDS: Final = 10.0
"""How long the body of an error is waited for. Its status alone is enough."""
_MAX_INLINE_BYTES: Final = 4 * MEBIBYTE
"""Larger answers are decoded in a thread, because they would block the event loop."""

_MAX_DECODING: Final = 2
"""Large answers decoded at the same time. More threads would only compete for the GIL."""

log = structlog.get_logger(__name__)


@contextlib.asynccontextmanager
async def open_client(
    settings: ClientSettings,
    *,
    dialect: Dialect = openai,
    observer: Observer | None = None,
    tracer: Tracer = NO_TRACER,
    pace: Pace | None = None,
) -> AsyncIterator[UpstreamClient]:
    """The client of a process, with its connection pool, which is closed on exit."""
    tls = await asyncio.to_thread(create_tls, settings.ca_file)  # reads files
    async with open_session(settings, tls, auth=dialect.auth) as session:
        yield UpstreamClient(
            session,
            settings,
            dialect=dialect,
            observer=observer or Unobserved(),
            tracer=tracer,
            pace=pace or Pace(),
        )


class UpstreamClient:
    """Buys images from one upstream."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        settings: ClientSettings,
        *,
        dialect: Dialect,
        observer: Observer,
        tracer: Tracer,
        pace: Pace,
    ) -> None:
        self._session = session
        self._settings = settings
        self._observer = observer
        self._tracer = tracer
        self._pace = pace
        self._dialect = dialect
        self._relay = Relay(settings.secrets)
        self._base = URL(settings.base_url)
        self._decoding = asyncio.Semaphore(_MAX_DECODING)
        self._turns = Turns()
        self._breaker = Breaker(
            failures=settings.breaker_failures, open_seconds=settings.breaker_open_seconds
        )
        self._outage = Condition(
            log,
            "upstream_breaker_opened",
            "upstream_breaker_closed",
            counted="failed_purchases",
            fields={"upstream": settings.name} if settings.name else None,
        )
        self._last_outage = ""
        self.on_headers: Callable[[int, Mapping[str, str]], None] = lambda status, headers: None
        """Called with status and headers of every response to a purchase."""

    @property
    def is_breaker_open(self) -> bool:
        """Whether purchases are rejected at the moment, or one of them is probing."""
        return self._breaker.is_open

    @property
    def settings(self) -> ClientSettings:
        return self._settings

    @property
    def pace(self) -> Pace:
        return self._pace

    @property
    def observer(self) -> Observer:
        return self._observer

    def admits(self) -> bool:
        """Whether the breaker would let a purchase pass now."""
        return self._breaker.admits(self._pace.clock())

    def can_make(self, request: ImageRequest, *, images: int, upstream_model: str = "") -> bool:
        """Whether the service can be asked for a purchase: its dialect refuses nothing of it."""
        try:
            self._dialect.check_supported(_renamed(request, upstream_model), images=images)
        except UpstreamFailure:
            return False
        return True

    async def generate(self, request: ImageRequest, *, images: int) -> UpstreamAnswer:
        """Buys images at this account alone, as `upstream.pool` does at several."""
        return await Attempts([Candidate(self)], request, images=images).run()

    async def stream(
        self,
        request: ImageRequest,
        *,
        on_partial: Callable[[PartialImage], Awaitable[None]],
        on_open: Callable[[], Awaitable[None]],
    ) -> UpstreamAnswer:
        """Buys an image as a stream at this account alone."""
        stream = StreamHandlers(on_partial, on_open)
        return await Attempts([Candidate(self)], request, images=1, stream=stream).run()

    def prepare(
        self, request: ImageRequest, *, images: int, upstream_model: str = ""
    ) -> PreparedRequest:
        """A request for `images` images. Some services answer it with the events of a stream."""
        sent = _renamed(request, upstream_model)
        body = _exact(self._dialect.forwarded_body(sent, images=images))
        receive = partial(self._receive_answer, limit_bytes=self._limit_bytes(images))
        most = request.max_images(images)  # a model without a row may bring more
        return PreparedRequest(request, sent.model, body, receive, images=most)

    def prepare_stream(
        self,
        request: ImageRequest,
        handlers: StreamHandlers,
        *,
        started: float,
        upstream_model: str = "",
    ) -> PreparedRequest:
        """A request for one image as a stream. Some clones answer without a stream."""
        sent = _renamed(request, upstream_model)
        body = _exact(self._dialect.forwarded_body(sent, images=1, stream=True))

        async def receive(response: aiohttp.ClientResponse) -> Outcome:
            await handlers.on_open()
            if response.content_type != "text/event-stream":
                return await self._receive_answer(response, limit_bytes=self._limit_bytes(1))
            reader = self._stream_reader(response, request, handlers.on_partial, started=started)
            # Closed here also if reading stops before the end of the stream.
            async with contextlib.aclosing(_chunks(response.content)) as chunks:
                outcome = _outcome_of_200(response.status, await reader.read(chunks))
            if isinstance(outcome, Failed):
                report = replace(outcome.failure.report, phase="stream")
                outcome.failure.report = report
                outcome.failure.upstream_request_id = (
                    outcome.failure.upstream_request_id
                    or self._dialect.request_id(response.headers)
                )
            return outcome

        return PreparedRequest(request, sent.model, body, receive, images=1)

    async def check(self, base_url: str) -> CheckReply:
        """For `doctor`: what a purchase from this base URL would meet; it buys nothing.

        It has the headers, the proxy and the certificates of a purchase. The breaker and the
        observer are not involved.
        """
        return await send_check_request(
            self._session, URL(base_url), dialect=self._dialect, relay=self._relay
        )

    def _stream_reader(
        self,
        response: aiohttp.ClientResponse,
        request: ImageRequest,
        on_partial: Callable[[PartialImage], Awaitable[None]],
        *,
        started: float,
    ) -> StreamReader:
        parse = partial(
            self._dialect.parse_event,
            upstream_request_id=self._dialect.request_id(response.headers),
        )
        is_first = True

        async def parse_in_thread_if_large(event: Event) -> ParsedEvent | None:
            nonlocal is_first
            was_first, is_first = is_first, False
            if len(event.data) <= _MAX_INLINE_BYTES:
                return parse(event, is_first=was_first)
            return await asyncio.to_thread(parse, event, is_first=was_first)

        return StreamReader(
            max_event_bytes=self._limit_bytes(1),
            max_total_bytes=self._limit_bytes(1 + request.partial_images),
            max_partial_images=request.partial_images,
            clock=self._pace.clock,
            started=started,
            turns=self._turns,
            parse=parse_in_thread_if_large,
            on_partial=lambda image: on_partial(self._relay.partial_image(image)),
        )

    def relayed(self, answer: UpstreamAnswer) -> UpstreamAnswer:
        """The answer as it may leave `upstream`.

        Partial images, which come out before, are relayed by the reader of the stream.
        """
        return self._relay.answer(answer)

    def relayed_failure(
        self, failure: UpstreamFailure, prepared: PreparedRequest
    ) -> UpstreamFailure:
        """The failure as it may leave `upstream`."""
        relayed = self._relay.failure(failure)
        relayed.refuses_prompt = self._dialect.refuses_prompt(relayed, prepared.texts)
        return relayed

    # ── the circuit breaker ─────────────────────────────────────────────────────────────────

    def acquire(self) -> Permit | UpstreamFailure:
        """The permission to send, which ends in `report`; the failure if the breaker is open."""
        permit = self._breaker.acquire(self._pace.clock())
        if isinstance(permit, Permit):
            return permit
        self._outage.occurs(reason=self._last_outage)
        return failures.breaker_open(
            retry_after_seconds=permit.retry_after_seconds, because=self._last_outage
        )

    def report(self, permit: Permit, outcome: Outcome | None, *, is_counted: bool = False) -> None:
        """Reports the outcome of a purchase, after its retries, to the breaker. None: cancelled.

        With `is_counted`, an earlier failure of the same purchase was reported before.
        """
        was_open = self._breaker.is_open
        if outcome is None or (is_counted and permit.probe is None and _is_outage(outcome)):
            self._breaker.abandon(permit, self._pace.clock())
        elif isinstance(outcome, Failed) and outcome.is_outage:
            self._breaker.fail(permit, self._pace.clock())
            self._last_outage = _summary(outcome.failure.report)
        else:
            self._breaker.succeed()
        if self._breaker.is_open:
            self._outage.occurs(reason=self._last_outage)
        else:
            self._outage.ends()
        if self._breaker.is_open != was_open:
            self._observer.breaker_turned(is_open=not was_open)

    # ── one attempt ─────────────────────────────────────────────────────────────────────────

    async def parse_reply(self, reply: Reply, *, images: int) -> Answered | Failed:
        """Reads a complete answer. It has no deadline: an image that was paid for is not lost."""
        request_id = self._dialect.request_id(reply.headers)

        def parse() -> UpstreamAnswer | UpstreamFailure:
            # One that came in one piece is not copied.
            body = reply.chunks[0] if len(reply.chunks) == 1 else b"".join(reply.chunks)
            reply.chunks.clear()  # otherwise the answer would be in memory twice
            try:
                return self._dialect.parse_answer(
                    body, images=images, upstream_request_id=request_id
                )
            except UpstreamFailure as failure:
                if failure.report.reason is Reason.UNREADABLE:
                    found = read_body(
                        body,
                        images=images,
                        max_event_bytes=self._limit_bytes(1),
                        parse=partial(self._dialect.parse_event, upstream_request_id=request_id),
                    )
                    if found is not None:
                        return found
                    # Without what may be half of an answer: it repeats the prompt in other words.
                    shown = b"" if body[:256].lstrip()[:1] == b"{" else body
                    text = self._dialect.excerpt(shown, reply.headers)
                    message = f"{text} ({reply.size_bytes} bytes)"
                    failure.report = replace(failure.report, message=message)
                return detach(failure)  # its traceback keeps the body

        if reply.size_bytes <= _MAX_INLINE_BYTES:
            return _outcome_of_200(reply.status, parse())
        async with self._decoding:
            return _outcome_of_200(reply.status, await asyncio.to_thread(parse))

    def _limit_bytes(self, images: int) -> int:
        """The size of the largest valid answer with `images` images in base64."""
        base64_bytes = self._settings.max_image_bytes * 4 // 3 + 4
        # An eighth for line breaks and escapes in it.
        return images * (base64_bytes + base64_bytes // 8) + _ENVELOPE_BYTES

    async def attempt(
        self, prepared: PreparedRequest, state: SendState, *, resends: int
    ) -> Outcome:
        """Sends the request once, after `resends` other attempts. `state` shows how far it came."""
        started = self._pace.clock()
        status: int | str = "timeout"  # if the deadline cancels it
        url = self._dialect.generations_url(self._base, prepared.upstream_model)
        try:
            trace = prepared.request.trace
            with self._tracer.http_request(trace, "POST", str(url), resends=resends) as span:
                outcome = await self._send_once(prepared, state, url=url, trace=span.inside(trace))
                received, error = _answered(outcome)
                span.answered(received, error=error)
            status = outcome.status
            return outcome
        finally:
            elapsed = self._pace.clock() - started
            self._observer.attempted(prepared.request.model, status=status, seconds=elapsed)

    async def _send_once(
        self, prepared: PreparedRequest, state: SendState, *, url: URL, trace: TraceContext
    ) -> Outcome:
        """Sends one request. `state.is_sent` stays set only if the answer was cut off."""
        outcome: Outcome
        state.error = None
        # A header that the operator has set, perhaps the one with the key, is not the client's.
        own = self._session.headers
        headers = {name: value for name, value in trace.headers.items() if name not in own}
        try:
            # No redirects: they would lose the body of the POST, or send the key to another host.
            body = TrackedBody(prepared.body, state)
            async with await post(self._session, url, body, headers) as response:
                self.on_headers(response.status, response.headers)
                if 200 <= response.status < 300:
                    outcome = await prepared.receive(response)
                else:
                    state.error = ErrorResponse(
                        response.status, response.headers, self._pace.wall_clock()
                    )
                    outcome = await self._receive_error(response, state.error)
        except AnswerRejected as error:
            detach(error)  # the reader of the body keeps it
            return Failed("rejected", failures.rejected(str(error)))
        except (aiohttp.ClientError, OSError) as error:
            detach(error)
            if state.is_sent:
                return Failed("cut", failures.cut_off(error))
            return Failed("unreachable", failures.unreachable(error, host=url.raw_host))
        # Upstream has answered. If the deadline passes before the next attempt, nothing is under
        # way.
        state.is_sent = False
        state.error = None
        return outcome

    async def _receive_answer(
        self, response: aiohttp.ClientResponse, *, limit_bytes: int
    ) -> Reply | Failed:
        chunks: list[bytes] = []
        if hdrs.CONTENT_ENCODING not in response.headers:  # else it decodes as much at once
            # All of it is kept until its end, so the connection need not pause while this task
            # waits for its turn.
            response.content.set_read_chunk_size(limit_bytes)
        length = await _read(response, chunks, limit_bytes=limit_bytes)
        if length > limit_bytes:
            return Failed(response.status, failures.oversized())
        return Reply(response.status, chunks, length, response.headers)

    async def _receive_error(
        self, response: aiohttp.ClientResponse, error: ErrorResponse
    ) -> Failed:
        """Reads an error response, as far as it comes."""
        is_complete = False
        # The status alone is enough, so a body that is cut off or stalls is no further failure.
        with contextlib.suppress(aiohttp.ClientError, OSError):
            async with asyncio.timeout(_ERROR_BODY_SECONDS):
                await _read(response, error.chunks, limit_bytes=_MAX_ERROR_BYTES)
                is_complete = True
        return self._failed(error, is_complete=is_complete)

    def timed_out(self, state: SendState) -> Failed:
        """The outcome of an attempt whose deadline has passed."""
        if state.error is not None:
            return self._failed(state.error, is_complete=False)
        return Failed("timeout", failures.timed_out(was_sent=state.is_sent))

    def _failed(self, error: ErrorResponse, *, is_complete: bool) -> Failed:
        failure = self._dialect.parse_error(
            error.status,
            error.headers,
            b"".join(error.chunks),
            is_complete=is_complete,
            received_at=error.received_at,
        )
        return Failed(error.status, failure)


def _answered(outcome: Outcome) -> tuple[int | None, str | None]:
    """The status of the response, if there was one, and the kind of error, for the span."""
    if not isinstance(outcome, Failed):
        return outcome.status, None
    if outcome.came_with_200:
        return outcome.failure.report.status, outcome.failure.report.reason
    if isinstance(outcome.status, int):
        return outcome.status, None
    return None, outcome.status


def _is_outage(outcome: Outcome) -> bool:
    return isinstance(outcome, Failed) and outcome.is_outage


def _renamed(request: ImageRequest, upstream_model: str) -> ImageRequest:
    """The request with the name that the model has at the account."""
    if upstream_model in ("", request.model):
        return request
    return replace(request, model=upstream_model)


def _exact(body: bytes) -> bytes:
    """The body in no more memory than it needs.

    orjson's bytes keep the buffer that they were written to, which is up to eight times as large.
    A purchase holds its body until the answer has come: 4 KB less for a short prompt.
    """
    return bytes(memoryview(body))


def _summary(report: FailureReport) -> str:
    """A report in two words, which tell nothing of the purchase that failed."""
    return f"{report.reason} {report.status or ''}".rstrip()


async def _chunks(content: aiohttp.StreamReader) -> AsyncGenerator[bytes]:
    """The chunks of a body, including those that had arrived when the connection was lost."""
    try:
        async for chunk in content.iter_any():
            yield chunk
    except aiohttp.ClientError:
        # aiohttp has buffered it, but its public methods raise the error again.
        if rest := content._read_nowait(-1):  # noqa: SLF001
            yield rest
        raise


async def _read(response: aiohttp.ClientResponse, chunks: list[bytes], *, limit_bytes: int) -> int:
    """Appends to `chunks` until one exceeds the limit. Returns the number of bytes read.

    The caller passes the list so that it keeps the chunks if the connection is lost.
    """
    length = 0
    if response.content.is_eof() and response.content.total_bytes:
        chunks.append(take_complete(response.content))
        return len(chunks[-1])
    async for chunk in response.content.iter_any():
        chunks.append(chunk)
        length += len(chunk)
        if length > limit_bytes:
            break
    return length


def _outcome_of_200(status: int, result: UpstreamAnswer | UpstreamFailure) -> Answered | Failed:
    """The outcome of an answer or a stream that began with `status`.

    For metrics and breaker an error in it counts as the status that it usually has. An answer that
    cannot be read is no outage.
    """
    if isinstance(result, UpstreamAnswer):
        return Answered(status, result)
    result.report = replace(result.report, status=status)
    if result.charge is not Charge.UNDELIVERED:
        status = result.status
    return Failed(status, result, came_with_200=True)
