"""Sends one purchase upstream and reads the answer."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Final, Protocol, TypeAlias, TypeVar

import aiohttp
import structlog

from gateway.errors import Charge, UpstreamFailure
from gateway.images import ImageRequest, PartialImage, UpstreamAnswer
from gateway.net.sse import Event
from gateway.net.tls import create_tls
from gateway.upstream.breaker import Breaker, Pass, Refused
from gateway.upstream.openai import answers, errors, events, requests
from gateway.upstream.session import _MEBIBYTE, ClientSettings, _Body, _Line, _open_session
from gateway.upstream.stream import StreamReader

MAX_RETRIES: Final = 2
RETRY_WINDOW_SECONDS: Final = 30.0
"""No retry starts later than this after the first attempt."""

_FIRST_BACKOFF_SECONDS: Final = 0.5
_JITTER: Final = 0.25
_ENVELOPE_BYTES: Final = _MEBIBYTE
"""Room for everything in an answer that is not base64."""
_MAX_ERROR_BYTES: Final = _MEBIBYTE
_THREAD_ABOVE_BYTES: Final = 4 * _MEBIBYTE
"""Larger answers are decoded in a thread: they would hold up the loop."""

_DECODED_AT_ONCE: Final = 2
"""Large answers: more threads would only keep the loop, and one another, waiting for Python."""

_PROBE_SECONDS: Final = 10.0
"""How long a question that costs nothing is waited for."""

T = TypeVar("T")

log = structlog.get_logger(__name__)


class Observer(Protocol):
    """Is told about every attempt; the metrics listen."""

    def attempted(self, model: str, *, status: int | str, seconds: float) -> None:
        """One attempt ended: with a status, or `unreachable`, `cut`, `timeout`."""

    def retried(self) -> None:
        """Another attempt will follow."""

    def breaker_turned(self, *, is_open: bool) -> None:
        """The circuit breaker has opened or closed."""


class Unobserved:
    """An observer that nobody asks."""

    def attempted(self, model: str, *, status: int | str, seconds: float) -> None:
        """Nothing."""

    def retried(self) -> None:
        """Nothing."""

    def breaker_turned(self, *, is_open: bool) -> None:
        """Nothing."""


@dataclass(frozen=True, slots=True)
class Pace:
    """Time and chance as the retries see them: arguments, so that a test has its own."""

    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Awaitable[object]] = asyncio.sleep
    random: Callable[[], float] = random.random
    """Evenly from 0 to 1."""


@dataclass(frozen=True, slots=True)
class _Reply:
    """A whole 2xx answer, in the chunks in which it came."""

    status: int
    chunks: list[bytes]
    size_bytes: int
    request_id: str | None


@dataclass(frozen=True, slots=True)
class _Streamed:
    """A stream that brought its image."""

    status: int
    answered: UpstreamAnswer


@dataclass(frozen=True, slots=True)
class _Failed:
    """An attempt that ended without images: `status` is upstream's, or says why there is none."""

    status: int | str
    failure: UpstreamFailure

    @property
    def is_retryable(self) -> bool:
        status = self.status if isinstance(self.status, int) else None
        return errors.is_retryable(self.failure, upstream_status=status)

    @property
    def is_outage(self) -> bool:
        """Whether it speaks against the service: no connection, no answer in time, 5xx."""
        return not isinstance(self.status, int) or self.status >= 500


_Outcome: TypeAlias = _Reply | _Streamed | _Failed


@dataclass(frozen=True, slots=True)
class _Order:
    """What every attempt of a purchase sends, and how it reads what comes."""

    model: str
    body: bytes
    receive: Callable[[aiohttp.ClientResponse], Awaitable[_Outcome]]
    """Reads a 2xx answer; may raise what says that it was cut off."""


@contextlib.asynccontextmanager
async def open_client(
    settings: ClientSettings, *, observer: Observer | None = None, pace: Pace | None = None
) -> AsyncIterator[UpstreamClient]:
    """The one client of a process, with its pool; closes every connection at the end."""
    tls = await asyncio.to_thread(create_tls, settings.ca_file)  # reads files
    async with _open_session(settings, tls) as session:
        yield UpstreamClient(
            session, settings, observer=observer or Unobserved(), pace=pace or Pace()
        )


class UpstreamClient:
    """The paid service."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        settings: ClientSettings,
        *,
        observer: Observer,
        pace: Pace,
    ) -> None:
        self._session = session
        self._settings = settings
        self._observer = observer
        self._pace = pace
        self._url = settings.generations_url
        self._decoding = asyncio.Semaphore(_DECODED_AT_ONCE)
        self._breaker = Breaker(
            failures=settings.breaker_failures, open_seconds=settings.breaker_open_seconds
        )

    async def generate(self, request: ImageRequest, *, images: int) -> UpstreamAnswer:
        """Buys `images` images of `request`; whether they are images is not checked here.

        Raises `UpstreamFailure` when none came; its `charge` says what that is presumed to have
        cost. The deadline ends with the last byte: what has arrived is never given up.
        """
        body = requests.forwarded_body(request, images=images)
        receive = partial(self._receive_answer, limit_bytes=self._limit_bytes(images))
        return await self._buy(_Order(request.model, body, receive))

    async def stream(
        self,
        request: ImageRequest,
        *,
        on_partial: Callable[[PartialImage], Awaitable[None]],
        on_open: Callable[[], Awaitable[None]],
    ) -> UpstreamAnswer:
        """Buys one image of `request` as a stream, with the partial images that it asks for.

        `on_open` is called once, when upstream's 200 has arrived; from then on nothing is tried
        again. `on_partial` is called for each partial image as it arrives, and nothing is read
        before it returns. Both count against the deadline, and neither may raise: the purchase
        would end there. A plain answer, as clones give it, is taken too. Raises as `generate`.
        """
        body = requests.forwarded_body(request, images=1, stream=True)

        async def receive(response: aiohttp.ClientResponse) -> _Outcome:
            await on_open()
            if response.content_type != "text/event-stream":
                return await self._receive_answer(response, limit_bytes=self._limit_bytes(1))
            reader = self._stream_reader(response, request, on_partial)
            async with contextlib.aclosing(_chunks(response.content)) as chunks:
                return _concluded(response.status, await reader.read(chunks))

        return await self._buy(_Order(request.model, body, receive))

    async def probe(self) -> int | None:
        """The status that a list of the models is answered with; None: nobody answers in time.

        Sent as a purchase would be, with the same key and by the same way; costs nothing, and
        breaker and observer do not hear of it.
        """
        asking = self._session.get(self._settings.models_url, allow_redirects=False)
        try:
            async with asyncio.timeout(_PROBE_SECONDS), asking as response:
                return response.status
        except (aiohttp.ClientError, OSError):
            return None

    def _stream_reader(
        self,
        response: aiohttp.ClientResponse,
        request: ImageRequest,
        on_partial: Callable[[PartialImage], Awaitable[None]],
    ) -> StreamReader:
        parse = partial(
            events.parse_event,
            upstream_request_id=errors.request_id(response.headers),
            unspoken=self._settings.unspoken,
        )

        async def parse_apart(event: Event) -> events.News | None:
            return await _decode(partial(parse, event), size_bytes=len(event.data))

        return StreamReader(
            max_event_bytes=self._limit_bytes(1),
            max_total_bytes=self._limit_bytes(1 + request.partial_images),
            parse=parse_apart,
            on_partial=on_partial,
        )

    async def _buy(self, order: _Order) -> UpstreamAnswer:
        entered = self._enter()
        outcome: _Outcome | None = None
        try:
            outcome = await self._send_in_time(order)
        finally:
            self._leave(entered, outcome)
        if isinstance(outcome, _Failed):
            raise outcome.failure
        if isinstance(outcome, _Streamed):
            return outcome.answered
        return await self._parse(outcome)

    async def _parse(self, reply: _Reply) -> UpstreamAnswer:
        """Reads an answer; of large ones that come together only a few at a time."""
        parse = partial(_parse_chunks, reply.chunks, upstream_request_id=reply.request_id)
        if reply.size_bytes <= _THREAD_ABOVE_BYTES:
            return parse()
        async with self._decoding:
            return await asyncio.to_thread(parse)

    def _enter(self) -> Pass:
        """Asks the breaker; raises its 503 while it is open."""
        entered = self._breaker.enter(self._pace.clock())
        if isinstance(entered, Refused):
            raise errors.breaker_open(wait_seconds=entered.seconds)
        return entered

    def _leave(self, entered: Pass, outcome: _Outcome | None) -> None:
        """Tells the breaker how a purchase ended, after its retries; None is a cancelled one."""
        was_open = self._breaker.is_open
        if outcome is None:
            self._breaker.abandon(entered, self._pace.clock())
        elif isinstance(outcome, _Failed) and outcome.is_outage:
            self._breaker.fail(entered, self._pace.clock())
        else:
            self._breaker.succeed()
        if self._breaker.is_open != was_open:
            log.warning("upstream_breaker_closed" if was_open else "upstream_breaker_opened")
            self._observer.breaker_turned(is_open=not was_open)

    async def _send_in_time(self, order: _Order) -> _Outcome:
        line = _Line()
        try:
            async with asyncio.timeout(self._settings.timeout_seconds):
                return await self._send(order, line)
        except TimeoutError:
            return _Failed("timeout", errors.timed_out(was_sent=line.is_sent))

    def _limit_bytes(self, images: int) -> int:
        """The largest answer that `images` images in base64 can make."""
        return images * (self._settings.max_image_bytes * 4 // 3 + 4) + _ENVELOPE_BYTES

    async def _send(self, order: _Order, line: _Line) -> _Outcome:
        """Attempts until there is an answer, or nothing more that may be tried."""
        started = self._pace.clock()
        retries = 0
        while True:
            outcome = await self._observed(order, line)
            if not isinstance(outcome, _Failed):
                return outcome
            elapsed = self._pace.clock() - started
            wait = self._wait_seconds(outcome, retries=retries, elapsed_seconds=elapsed)
            if wait is None:
                return outcome
            retries += 1
            self._observer.retried()
            await self._pace.sleep(wait)

    def _wait_seconds(
        self, failed: _Failed, *, retries: int, elapsed_seconds: float
    ) -> float | None:
        """How long to wait before the next attempt; None when there is to be none."""
        if retries == MAX_RETRIES or not failed.is_retryable:
            return None
        wait = errors.retry_after_seconds(failed.failure)
        if wait is None:
            jitter = 1 - _JITTER * self._pace.random()
            wait = _FIRST_BACKOFF_SECONDS * 2**retries * jitter
        return wait if elapsed_seconds + wait <= RETRY_WINDOW_SECONDS else None

    async def _observed(self, order: _Order, line: _Line) -> _Outcome:
        started = self._pace.clock()
        status: int | str = "timeout"  # what it is when the deadline ends it
        try:
            outcome = await self._attempt(order, line)
            status = outcome.status
            return outcome
        finally:
            elapsed = self._pace.clock() - started
            self._observer.attempted(order.model, status=status, seconds=elapsed)

    async def _attempt(self, order: _Order, line: _Line) -> _Outcome:
        """One request. Only one that was cut off leaves the line marked as sent."""
        outcome: _Outcome
        try:
            async with self._session.post(
                self._url, data=_Body(order.body, line), allow_redirects=False
            ) as response:
                if 200 <= response.status < 300:
                    outcome = await order.receive(response)
                else:
                    outcome = await self._receive_error(response)
        except (aiohttp.ClientError, OSError):
            if line.is_sent:
                return _Failed("cut", errors.cut_off())
            return _Failed("unreachable", errors.unreachable())
        line.is_sent = False
        return outcome

    async def _receive_answer(
        self, response: aiohttp.ClientResponse, *, limit_bytes: int
    ) -> _Reply | _Failed:
        chunks: list[bytes] = []
        length = await _read(response, chunks, limit_bytes=limit_bytes)
        if length > limit_bytes:
            return _Failed(response.status, errors.oversized())
        return _Reply(response.status, chunks, length, errors.request_id(response.headers))

    async def _receive_error(self, response: aiohttp.ClientResponse) -> _Failed:
        """The status decides; a body that is cut off is read as far as it came."""
        chunks: list[bytes] = []
        with contextlib.suppress(aiohttp.ClientError, OSError):
            await _read(response, chunks, limit_bytes=_MAX_ERROR_BYTES)
        body = b"".join(chunks)
        for secret in self._settings.unspoken:  # some services quote the key they refuse
            body = body.replace(secret, b"***")
        return _Failed(response.status, errors.parse_error(response.status, response.headers, body))


async def _chunks(content: aiohttp.StreamReader) -> AsyncGenerator[bytes]:
    """What comes, and what had come when the connection was lost, which aiohttp would keep."""
    try:
        async for chunk in content.iter_any():
            yield chunk
    except aiohttp.ClientError:
        if rest := content._read_nowait(-1):  # noqa: SLF001 - the public one raises again
            yield rest
        raise


async def _read(response: aiohttp.ClientResponse, chunks: list[bytes], *, limit_bytes: int) -> int:
    """Appends what comes, and stops at the first chunk beyond the limit; answers its length."""
    length = 0
    async for chunk in response.content.iter_any():
        chunks.append(chunk)
        length += len(chunk)
        if length > limit_bytes:
            break
    return length


def _concluded(status: int, end: UpstreamAnswer | UpstreamFailure) -> _Streamed | _Failed:
    """The outcome of a stream whose head said `status`.

    An error that it told counts, for metrics and breaker, as the status it would have had without
    a stream; what could not be read says nothing against the service.
    """
    if isinstance(end, UpstreamAnswer):
        return _Streamed(status, end)
    return _Failed(end.status if end.charge is Charge.PRESUMED else status, end)


def _parse_chunks(chunks: list[bytes], *, upstream_request_id: str | None) -> UpstreamAnswer:
    """Reads an answer; its chunks are given up for the whole, or it would lie in memory twice."""
    body = b"".join(chunks)
    chunks.clear()
    return answers.parse_answer(body, upstream_request_id=upstream_request_id)


async def _decode(parse: Callable[[], T], *, size_bytes: int) -> T:
    return parse() if size_bytes <= _THREAD_ABOVE_BYTES else await asyncio.to_thread(parse)
