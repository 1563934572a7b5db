"""The client of upstream: one purchase with its deadline, retries and circuit breaker.

A purchase has one deadline and at most `MAX_RETRIES` retries, see
`docs/reference/billing.md#retries-and-the-circuit-breaker`. URLs, request bodies and the reading of
responses are the dialect, connections are `session`. `purchasing` checks the bytes of images.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, Protocol, TypeAlias

import aiohttp
import structlog
from yarl import URL

from gateway.conditions import Condition
from gateway.errors import Charge, UpstreamFailure, detach
from gateway.failure_report import FailureReport, Reason
from gateway.images import ImageRequest, PartialImage, UpstreamAnswer
from gateway.net.sse import Event
from gateway.net.tls import create_tls
from gateway.tasks import Turns
from gateway.trace_context import TraceContext
from gateway.tracing import NO_TRACER, Tracer
from gateway.upstream import failures, openai
from gateway.upstream.breaker import Breaker, Permit, Rejected
from gateway.upstream.check_request import CheckReply, send_check_request
from gateway.upstream.connection import AnswerRejected
from gateway.upstream.dialect import Dialect, ParsedEvent
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

MAX_RETRIES: Final = 2
RETRY_WINDOW_SECONDS: Final = 30.0
"""After the first attempt has started. Later than this no retry starts."""

_FIRST_BACKOFF_SECONDS: Final = 0.5
_JITTER: Final = 0.25
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


class Observer(Protocol):
    """Receives the outcome of every attempt; the metrics implement it."""

    def attempted(self, model: str, *, status: int | str, seconds: float) -> None:
        """An attempt ended with a status, or with `unreachable`, `cut`, `rejected` or `timeout`."""

    def retried(self) -> None:
        """Another attempt will follow."""

    def waits(self, more: int) -> None:
        """A purchase begins (1) or stops (−1) to wait before it may be sent."""

    def waited(self, seconds: float) -> None:
        """How long a purchase waited in all before its last attempt."""

    def breaker_turned(self, *, is_open: bool) -> None:
        """The circuit breaker has opened or closed."""


class Unobserved:
    """An observer that records nothing."""

    def attempted(self, model: str, *, status: int | str, seconds: float) -> None:
        """Nothing."""

    def retried(self) -> None:
        """Nothing."""

    def waits(self, more: int) -> None:
        """Nothing."""

    def waited(self, seconds: float) -> None:
        """Nothing."""

    def breaker_turned(self, *, is_open: bool) -> None:
        """Nothing."""


@dataclass(frozen=True, slots=True)
class Pace:
    """The clock and the randomness of retries and breaker, which tests replace."""

    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Awaitable[object]] = asyncio.sleep
    random: Callable[[], float] = random.random
    """Uniform in [0, 1)."""
    wall_clock: Callable[[], float] = time.time
    """Unix seconds."""


@dataclass(frozen=True, slots=True)
class _Reply:
    """A complete 2xx answer, in chunks as received."""

    status: int
    chunks: list[bytes]
    size_bytes: int
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class _Answered:
    """A 2xx answer or a stream that brought an image."""

    status: int
    answer: UpstreamAnswer


@dataclass(frozen=True, slots=True)
class _Failed:
    """An attempt that failed."""

    status: int | str
    """Upstream's, or `unreachable`, `cut`, `rejected` or `timeout`."""
    failure: UpstreamFailure
    came_with_200: bool = False
    """Its status is not the response's. It is not retried: upstream had begun to work."""

    @property
    def is_retryable(self) -> bool:
        if self.came_with_200:
            return False
        status = self.status if isinstance(self.status, int) else None
        return failures.is_retryable(self.failure, upstream_status=status)

    @property
    def is_outage(self) -> bool:
        """Whether the breaker counts it: no connection, no complete answer in time, or 5xx."""
        return not isinstance(self.status, int) or self.status >= 500


_Outcome: TypeAlias = _Reply | _Answered | _Failed


@dataclass(frozen=True, slots=True)
class _PreparedRequest:
    """The request of a purchase, which every attempt sends, and the reader of its answer."""

    model: str
    texts: tuple[str, ...]
    """The prompt and the names of the client, which upstream may quote."""
    body: bytes
    receive: Callable[[aiohttp.ClientResponse], Awaitable[_Outcome]]
    """Reads a 2xx answer. Raises `aiohttp.ClientError` or `OSError` if it was cut off."""
    images: int
    """How many it asks for."""
    trace: TraceContext


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
            log, "upstream_breaker_opened", "upstream_breaker_closed", counted="failed_purchases"
        )
        self._last_outage = ""

    @property
    def is_breaker_open(self) -> bool:
        """Whether purchases are rejected at the moment, or one of them is probing."""
        return self._breaker.is_open

    async def generate(self, request: ImageRequest, *, images: int) -> UpstreamAnswer:
        """Buys `images` images of `request`; their bytes are not checked.

        For a model without a row there may be more, as `ImageRequest.max_images` says.

        Raises `UpstreamFailure` if no image came, with the presumed `charge`. The deadline applies
        until the last byte has arrived; decoding afterwards has none. Some services answer with
        the events of a stream, which is accepted.
        """
        body = self._dialect.forwarded_body(request, images=images)
        receive = partial(self._receive_answer, limit_bytes=self._limit_bytes(images))
        most = request.max_images(images)
        return await self._buy(self._prepare(request, body, receive, images=most))

    async def stream(
        self,
        request: ImageRequest,
        *,
        on_partial: Callable[[PartialImage], Awaitable[None]],
        on_open: Callable[[], Awaitable[None]],
    ) -> UpstreamAnswer:
        """Buys one image of `request` as a stream, with the partial images that it requests.

        `on_open` is called once, when upstream's 200 has arrived; after that nothing is retried.
        `on_partial` is called for each partial image, and reading continues when it returns. Both
        count towards the deadline. They must not raise, because that would end the purchase.
        Some clones answer without a stream, which is accepted. Raises like `generate`.
        """
        body = self._dialect.forwarded_body(request, images=1, stream=True)
        started = self._pace.clock()

        async def receive(response: aiohttp.ClientResponse) -> _Outcome:
            await on_open()
            if response.content_type != "text/event-stream":
                return await self._receive_answer(response, limit_bytes=self._limit_bytes(1))
            reader = self._stream_reader(response, request, on_partial, started=started)
            # Closed here also if reading stops before the end of the stream.
            async with contextlib.aclosing(_chunks(response.content)) as chunks:
                outcome = _outcome_of_200(response.status, await reader.read(chunks))
            if isinstance(outcome, _Failed):
                report = replace(outcome.failure.report, phase="stream")
                outcome.failure.report = report
                outcome.failure.upstream_request_id = (
                    outcome.failure.upstream_request_id
                    or self._dialect.request_id(response.headers)
                )
            return outcome

        return await self._buy(self._prepare(request, body, receive, images=1))

    async def check(self, base_url: str) -> CheckReply:
        """For `doctor`: what a purchase from this base URL would meet; it buys nothing.

        It has the headers, the proxy and the certificates of a purchase. The breaker and the
        observer are not involved.
        """
        return await send_check_request(
            self._session, URL(base_url), dialect=self._dialect, relay=self._relay
        )

    def _prepare(
        self,
        request: ImageRequest,
        body: bytes,
        receive: Callable[[aiohttp.ClientResponse], Awaitable[_Outcome]],
        *,
        images: int,
    ) -> _PreparedRequest:
        texts = (request.prompt, *request.user_names)
        return _PreparedRequest(request.model, texts, body, receive, images, request.trace)

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

    async def _buy(self, prepared: _PreparedRequest) -> UpstreamAnswer:
        """The answer, or raises the failure, as it may be relayed: the only way out of this client.

        Partial images, which come out before, are relayed by the reader of the stream.
        """
        try:
            answer = await self._send_and_parse(prepared)
        except UpstreamFailure as failure:
            raise self._relayed(failure, prepared) from None
        return self._relay.answer(answer)

    def _relayed(self, failure: UpstreamFailure, prepared: _PreparedRequest) -> UpstreamFailure:
        relayed = self._relay.failure(failure)
        relayed.refuses_prompt = self._dialect.refuses_prompt(relayed, prepared.texts)
        return relayed

    async def _send_and_parse(self, prepared: _PreparedRequest) -> UpstreamAnswer:
        permit = self._breaker.acquire(self._pace.clock())
        if isinstance(permit, Rejected):
            self._outage.occurs(reason=self._last_outage)
            raise failures.breaker_open(
                retry_after_seconds=permit.retry_after_seconds, because=self._last_outage
            )
        outcome: _Outcome | None = None
        try:
            outcome = await self._send_before_deadline(prepared)
            if isinstance(outcome, _Reply):
                # Decoding has no deadline, so that an image that was paid for is not lost.
                outcome = await self._parse_reply(outcome, images=prepared.images)
        finally:
            self._report(permit, outcome)
        if isinstance(outcome, _Failed):
            raise outcome.failure
        return outcome.answer

    async def _parse_reply(self, reply: _Reply, *, images: int) -> _Answered | _Failed:
        request_id = self._dialect.request_id(reply.headers)

        def parse() -> UpstreamAnswer | UpstreamFailure:
            body = b"".join(reply.chunks)
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

    def _report(self, permit: Permit, outcome: _Outcome | None) -> None:
        """Reports the outcome of a purchase, after its retries, to the breaker. None: cancelled."""
        was_open = self._breaker.is_open
        if outcome is None:
            self._breaker.abandon(permit, self._pace.clock())
        elif isinstance(outcome, _Failed) and outcome.is_outage:
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

    async def _send_before_deadline(self, prepared: _PreparedRequest) -> _Outcome:
        state = SendState()
        try:
            async with asyncio.timeout(self._settings.timeout_seconds):
                return await self._send(prepared, state)
        except TimeoutError:
            if state.error is not None:
                return self._failed(state.error, is_complete=False)
            return _Failed("timeout", failures.timed_out(was_sent=state.is_sent))

    def _limit_bytes(self, images: int) -> int:
        """The size of the largest valid answer with `images` images in base64."""
        base64_bytes = self._settings.max_image_bytes * 4 // 3 + 4
        # An eighth for line breaks and escapes in it.
        return images * (base64_bytes + base64_bytes // 8) + _ENVELOPE_BYTES

    async def _send(self, prepared: _PreparedRequest, state: SendState) -> _Outcome:
        """Sends and retries until there is an answer or a failure that is not retried."""
        started = self._pace.clock()
        retries, waited_seconds = 0, 0.0
        try:
            while True:
                outcome = await self._observe_attempt(prepared, state, retries=retries)
                if not isinstance(outcome, _Failed):
                    return outcome
                elapsed = self._pace.clock() - started
                wait = self._wait_seconds(outcome, retries=retries, elapsed_seconds=elapsed)
                if wait is None:
                    return outcome
                retries += 1
                self._observer.retried()
                await self._wait(wait)
                waited_seconds += wait
        finally:
            self._observer.waited(waited_seconds)

    async def _wait(self, seconds: float) -> None:
        self._observer.waits(1)
        try:
            await self._pace.sleep(seconds)
        finally:
            self._observer.waits(-1)

    def _wait_seconds(
        self, failed: _Failed, *, retries: int, elapsed_seconds: float
    ) -> float | None:
        """The wait before the next attempt; None if there is no further one."""
        if retries == MAX_RETRIES or not failed.is_retryable:
            return None
        wait = failures.requested_wait_seconds(failed.failure)
        if wait is None:
            jitter = 1 - _JITTER * self._pace.random()
            wait = _FIRST_BACKOFF_SECONDS * 2**retries * jitter
        return wait if elapsed_seconds + wait <= RETRY_WINDOW_SECONDS else None

    async def _observe_attempt(
        self, prepared: _PreparedRequest, state: SendState, *, retries: int
    ) -> _Outcome:
        started = self._pace.clock()
        status: int | str = "timeout"  # if the deadline cancels it
        url = self._dialect.generations_url(self._base, prepared.model)
        try:
            with self._tracer.http_request(
                prepared.trace, "POST", str(url), resends=retries
            ) as span:
                outcome = await self._send_once(
                    prepared, state, url=url, trace=span.inside(prepared.trace)
                )
                received, error = _answered(outcome)
                span.answered(received, error=error)
            status = outcome.status
            return outcome
        finally:
            elapsed = self._pace.clock() - started
            self._observer.attempted(prepared.model, status=status, seconds=elapsed)

    async def _send_once(
        self, prepared: _PreparedRequest, state: SendState, *, url: URL, trace: TraceContext
    ) -> _Outcome:
        """Sends one request. `state.is_sent` stays set only if the answer was cut off."""
        outcome: _Outcome
        state.error = None
        # A header that the operator has set, perhaps the one with the key, is not the client's.
        own = self._session.headers
        headers = {name: value for name, value in trace.headers.items() if name not in own}
        try:
            # No redirects: they would lose the body of the POST, or send the key to another host.
            async with self._session.post(
                url,
                data=TrackedBody(prepared.body, state),
                headers=headers,
                allow_redirects=False,
            ) as response:
                if 200 <= response.status < 300:
                    outcome = await prepared.receive(response)
                else:
                    state.error = ErrorResponse(
                        response.status, response.headers, self._pace.wall_clock()
                    )
                    outcome = await self._receive_error(response, state.error)
        except AnswerRejected as error:
            detach(error)  # the reader of the body keeps it
            return _Failed("rejected", failures.rejected(str(error)))
        except (aiohttp.ClientError, OSError) as error:
            detach(error)
            if state.is_sent:
                return _Failed("cut", failures.cut_off(error))
            return _Failed("unreachable", failures.unreachable(error))
        # Upstream has answered. If the deadline passes before the next attempt, nothing is under
        # way.
        state.is_sent = False
        state.error = None
        return outcome

    async def _receive_answer(
        self, response: aiohttp.ClientResponse, *, limit_bytes: int
    ) -> _Reply | _Failed:
        chunks: list[bytes] = []
        length = await _read(response, chunks, limit_bytes=limit_bytes)
        if length > limit_bytes:
            return _Failed(response.status, failures.oversized())
        return _Reply(response.status, chunks, length, response.headers)

    async def _receive_error(
        self, response: aiohttp.ClientResponse, error: ErrorResponse
    ) -> _Failed:
        """Reads an error response, as far as it comes."""
        is_complete = False
        # The status alone is enough, so a body that is cut off or stalls is no further failure.
        with contextlib.suppress(aiohttp.ClientError, OSError):
            async with asyncio.timeout(_ERROR_BODY_SECONDS):
                await _read(response, error.chunks, limit_bytes=_MAX_ERROR_BYTES)
                is_complete = True
        return self._failed(error, is_complete=is_complete)

    def _failed(self, error: ErrorResponse, *, is_complete: bool) -> _Failed:
        failure = self._dialect.parse_error(
            error.status,
            error.headers,
            b"".join(error.chunks),
            is_complete=is_complete,
            received_at=error.received_at,
        )
        return _Failed(error.status, failure)


def _answered(outcome: _Outcome) -> tuple[int | None, str | None]:
    """The status of the response, if there was one, and the kind of error, for the span."""
    if not isinstance(outcome, _Failed):
        return outcome.status, None
    if outcome.came_with_200:
        return outcome.failure.report.status, outcome.failure.report.reason
    if isinstance(outcome.status, int):
        return outcome.status, None
    return None, outcome.status


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
    async for chunk in response.content.iter_any():
        chunks.append(chunk)
        length += len(chunk)
        if length > limit_bytes:
            break
    return length


def _outcome_of_200(status: int, result: UpstreamAnswer | UpstreamFailure) -> _Answered | _Failed:
    """The outcome of an answer or a stream that began with `status`.

    For metrics and breaker an error in it counts as the status that it usually has. An answer that
    cannot be read is no outage.
    """
    if isinstance(result, UpstreamAnswer):
        return _Answered(status, result)
    result.report = replace(result.report, status=status)
    if result.charge is not Charge.UNDELIVERED:
        status = result.status
    return _Failed(status, result, came_with_200=True)
