"""Sends one purchase to the paid service and brings back what it answered.

One connection pool, one deadline, at most two retries, one circuit breaker (CONTRACT §9), for
plain answers and for streams. How a request and an answer read is `wire`, how a stream is read to
its end is `stream`, when the breaker opens is `breaker`; whether a purchase may be
made and what it is charged is decided elsewhere. The question that matters here is what was
certainly *not* sent: only that may be sent again, and only that is certainly free.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import ssl
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, Protocol, TypeAlias, TypeVar

import aiohttp
import structlog
from aiohttp.abc import AbstractStreamWriter
from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator
from yarl import URL

from gateway import __version__
from gateway.errors import Charge, UpstreamFailure
from gateway.images import Answered, ImageRequest, PartialImage
from gateway.sse import Event
from gateway.upstream import wire
from gateway.upstream.breaker import Breaker, Pass, Refused
from gateway.upstream.stream import StreamReader
from gateway.upstream.tls import create_tls

MAX_RETRIES: Final = 2
RETRY_WINDOW_SECONDS: Final = 30.0
"""No retry starts later than this after the first attempt."""

_FIRST_BACKOFF_SECONDS: Final = 0.5
_JITTER: Final = 0.25

_IDLE_CONNECTION_SECONDS: Final = 15.0
"""How long an idle connection is kept: shorter than servers and load balancers usually do.

A purchase sent on a connection that the other side is just closing looks like one that was cut
off: it is not sent again, and it is charged. A new connection costs milliseconds.
"""

_PROBE_AFTER_SECONDS: Final = 60
"""A picture takes minutes of silence, in which a NAT forgets a connection (WIRE §8 row 5)."""

_MEBIBYTE: Final = 1024 * 1024
_ENVELOPE_BYTES: Final = _MEBIBYTE
"""Room for everything in an answer that is not base64."""
_MAX_ERROR_BYTES: Final = _MEBIBYTE
_THREAD_ABOVE_BYTES: Final = 4 * _MEBIBYTE
"""Larger answers are decoded in a thread: they would hold up the loop."""

_DECODED_AT_ONCE: Final = 2
"""Large answers: more threads would only keep the loop, and one another, waiting for Python."""

_READ_BYTES: Final = 128 * 1024
"""Of an answer, until it is taken up: twice as much waits at most, in each connection."""

_PROBE_SECONDS: Final = 10.0
"""How long a question that costs nothing is waited for."""

_TUNNEL_STEPS: Final = 3
"""Through a proxy a connection is made in three steps: to it, by it, and TLS through it."""

_SHORTEST_SECRET: Final = 8
"""Characters. A shorter value of an extra header would be found in any text by chance."""

T = TypeVar("T")

log = structlog.get_logger(__name__)


class ClientSettings(BaseModel):
    """Where the paid service is and how much of it we take."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    base_url: str
    """As an SDK takes it: `https://host/v1`, with or without a trailing slash."""
    api_key: SecretStr
    timeout_seconds: float = Field(default=600, gt=0)
    """From the first attempt to the last byte, retries included."""
    connect_timeout_seconds: float = Field(default=5, gt=0)
    """For one TCP connection and its TLS handshake."""
    max_picture_bytes: int = Field(default=64 * _MEBIBYTE, gt=0)
    auth_header: str = "Authorization"
    """Carries the key: `Authorization` as `Bearer …`, any other name the key alone."""
    headers: Mapping[str, SecretStr] = Field(default_factory=dict)
    """Sent with every request, beside the client's own."""
    proxy: SecretStr | None = None
    """`http://host:port`, with or without user and password."""
    ca_file: Path | None = None
    """Authorities to be trusted beside the system's, in PEM."""
    breaker_failures: int = Field(default=5, ge=0)
    """Purchases in a row that open the circuit breaker; 0: it never opens."""
    breaker_open_seconds: float = Field(default=10, gt=0)

    @field_validator("base_url")
    @classmethod
    def _is_plain_http_address(cls, value: str) -> str:
        url = URL(value)
        if url.scheme not in ("http", "https") or not url.host:
            raise ValueError("must start with http:// or https:// and name a host")
        if url.user is not None or url.password is not None:
            raise ValueError("must not contain a user or a password")
        url.host.encode("idna")  # what the resolver will do; raises a ValueError
        return value

    @field_validator("api_key")
    @classmethod
    def _fits_into_a_header(cls, value: SecretStr) -> SecretStr:
        secret = value.get_secret_value().strip()  # a key read from a file ends in a newline
        if not secret or not all("!" <= character <= "~" for character in secret):
            raise ValueError("must be printable ASCII without spaces, and not empty")
        return SecretStr(secret)

    @property
    def sent_headers(self) -> dict[str, str]:
        """Every header that a request is sent with, but for those of HTTP itself."""
        key = self.api_key.get_secret_value()
        is_bearer = self.auth_header.lower() == "authorization"
        return {
            self.auth_header: f"Bearer {key}" if is_bearer else key,
            "Content-Type": "application/json",
            "Accept": "application/json",
            "Accept-Encoding": "identity",  # base64 of a PNG hardly shrinks (WIRE §8 row 2)
            "User-Agent": f"image-gateway/{__version__}",
            **{name: value.get_secret_value() for name, value in self.headers.items()},
        }

    @property
    def unspoken(self) -> list[bytes]:
        """What no error that is relayed may say, although upstream does."""
        values = [value.get_secret_value() for value in self.headers.values()]
        secrets = [value for value in values if len(value) >= _SHORTEST_SECRET]
        return [secret.encode() for secret in (self.api_key.get_secret_value(), *secrets)]

    @property
    def generations_url(self) -> URL:
        """Where pictures are asked for; a query of the base address (`api-version`) stays."""
        return self._url_of("/images/generations")

    @property
    def models_url(self) -> URL:
        """Where the models are listed: asking there costs nothing."""
        return self._url_of("/models")

    def _url_of(self, path: str) -> URL:
        base = URL(self.base_url)
        path = base.raw_path.rstrip("/") + path
        return base.with_path(path, encoded=True, keep_query=True)


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


@dataclass(slots=True)
class _Line:
    """Whether a request of this purchase may be under way right now."""

    is_sent: bool = False


class _Body(aiohttp.BytesPayload):
    """A request's body; marks the line at the last moment at which certainly nothing was sent.

    A connection is there by then, and without its body a request asks for nothing. The types of
    aiohttp's exceptions do not tell the two sides apart as reliably.
    """

    def __init__(self, body: bytes, line: _Line) -> None:
        super().__init__(body)
        self._line = line

    async def write_with_length(
        self, writer: AbstractStreamWriter, content_length: int | None
    ) -> None:
        self._line.is_sent = True
        await super().write_with_length(writer, content_length)


@dataclass(frozen=True, slots=True)
class _Reply:
    """A whole 2xx answer, in the chunks in which it came."""

    status: int
    chunks: list[bytes]
    size_bytes: int
    request_id: str | None


@dataclass(frozen=True, slots=True)
class _Streamed:
    """A stream that brought its picture."""

    status: int
    answered: Answered


@dataclass(frozen=True, slots=True)
class _Failed:
    """An attempt that ended without pictures: `status` is upstream's, or says why there is none."""

    status: int | str
    failure: UpstreamFailure

    @property
    def is_retryable(self) -> bool:
        status = self.status if isinstance(self.status, int) else None
        return wire.is_retryable(self.failure, upstream_status=status)

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

    async def generate(self, request: ImageRequest, *, pictures: int) -> Answered:
        """Buys `pictures` pictures of `request`; whether they are pictures is not checked here.

        Raises `UpstreamFailure` when none came; its `charge` says what that is presumed to have
        cost. The deadline ends with the last byte: what has arrived is never given up.
        """
        body = wire.forwarded_body(request, pictures=pictures)
        receive = partial(self._receive_answer, limit_bytes=self._limit_bytes(pictures))
        return await self._buy(_Order(request.model, body, receive))

    async def stream(
        self,
        request: ImageRequest,
        *,
        on_partial: Callable[[PartialImage], Awaitable[None]],
        on_open: Callable[[], Awaitable[None]],
    ) -> Answered:
        """Buys one picture of `request` as a stream, with the partial images that it asks for.

        `on_open` is called once, when upstream's 200 has arrived; from then on nothing is tried
        again. `on_partial` is called for each partial image as it arrives, and nothing is read
        before it returns. Both count against the deadline, and neither may raise: the purchase
        would end there. A plain answer, as clones give it, is taken too. Raises as `generate`.
        """
        body = wire.forwarded_body(request, pictures=1, stream=True)

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
            wire.parse_event,
            upstream_request_id=wire.request_id(response.headers),
            unspoken=self._settings.unspoken,
        )

        async def parse_apart(event: Event) -> wire.News | None:
            return await _decode(partial(parse, event), size_bytes=len(event.data))

        return StreamReader(
            max_event_bytes=self._limit_bytes(1),
            max_total_bytes=self._limit_bytes(1 + request.partial_images),
            parse=parse_apart,
            on_partial=on_partial,
        )

    async def _buy(self, order: _Order) -> Answered:
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

    async def _parse(self, reply: _Reply) -> Answered:
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
            raise wire.breaker_open(wait_seconds=entered.seconds)
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
            return _Failed("timeout", wire.timed_out(was_sent=line.is_sent))

    def _limit_bytes(self, pictures: int) -> int:
        """The largest answer that `pictures` pictures in base64 can make."""
        return pictures * (self._settings.max_picture_bytes * 4 // 3 + 4) + _ENVELOPE_BYTES

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
        wait = wire.retry_after_seconds(failed.failure)
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
                return _Failed("cut", wire.cut_off())
            return _Failed("unreachable", wire.unreachable())
        line.is_sent = False
        return outcome

    async def _receive_answer(
        self, response: aiohttp.ClientResponse, *, limit_bytes: int
    ) -> _Reply | _Failed:
        chunks: list[bytes] = []
        length = await _read(response, chunks, limit_bytes=limit_bytes)
        if length > limit_bytes:
            return _Failed(response.status, wire.oversized())
        return _Reply(response.status, chunks, length, wire.request_id(response.headers))

    async def _receive_error(self, response: aiohttp.ClientResponse) -> _Failed:
        """The status decides; a body that is cut off is read as far as it came."""
        chunks: list[bytes] = []
        with contextlib.suppress(aiohttp.ClientError, OSError):
            await _read(response, chunks, limit_bytes=_MAX_ERROR_BYTES)
        body = b"".join(chunks)
        for secret in self._settings.unspoken:  # some services quote the key they refuse
            body = body.replace(secret, b"***")
        return _Failed(response.status, wire.parse_error(response.status, response.headers, body))


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


def _concluded(status: int, end: Answered | UpstreamFailure) -> _Streamed | _Failed:
    """The outcome of a stream whose head said `status`.

    An error that it told counts, for metrics and breaker, as the status it would have had without
    a stream; what could not be read says nothing against the service.
    """
    if isinstance(end, Answered):
        return _Streamed(status, end)
    return _Failed(end.status if end.charge is Charge.PRESUMED else status, end)


def _parse_chunks(chunks: list[bytes], *, upstream_request_id: str | None) -> Answered:
    """Reads an answer; its chunks are given up for the whole, or it would lie in memory twice."""
    body = b"".join(chunks)
    chunks.clear()
    return wire.parse_answer(body, upstream_request_id=upstream_request_id)


async def _decode(parse: Callable[[], T], *, size_bytes: int) -> T:
    return parse() if size_bytes <= _THREAD_ABOVE_BYTES else await asyncio.to_thread(parse)


# ── the pool ────────────────────────────────────────────────────────────────────────────────


def _open_session(settings: ClientSettings, tls: ssl.SSLContext | bool) -> aiohttp.ClientSession:
    """A session that sends our headers and nothing else, and keeps nothing between calls."""
    proxy = settings.proxy.get_secret_value() if settings.proxy else None
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(
            limit=0,  # how much may be bought at once is a limit of keys, not of sockets
            keepalive_timeout=_IDLE_CONNECTION_SECONDS,
            socket_factory=_open_socket,
            ssl=tls,
        ),
        headers=settings.sent_headers,
        cookie_jar=aiohttp.DummyCookieJar(),
        read_bufsize=_READ_BYTES,
        proxy=proxy,
        timeout=aiohttp.ClientTimeout(
            total=None,
            # A proxy that never says whether it got through has no other end than the deadline.
            connect=_TUNNEL_STEPS * settings.connect_timeout_seconds if proxy else None,
            sock_connect=settings.connect_timeout_seconds,
        ),
        trust_env=False,
    )


def _open_socket(address: aiohttp.AddrInfoType) -> socket.socket:
    family, kind, protocol, _, _ = address
    opened = socket.socket(family, kind, protocol)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_KEEPIDLE"):  # not everywhere; elsewhere the system's time holds
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _PROBE_AFTER_SECONDS)
    return opened
