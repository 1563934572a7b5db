"""The HTTP connection: bounds of heads, bodies and pipelining, and malformed HTTP.

aiohttp answers malformed HTTP in plain text, waits for the rest of a head as long as for the next
request, and bounds a head only line by line. Here a `Connection` gives aiohttp's parser one part
after the other, the head of a request, then its body, then, when it is answered, the next head.
So every byte belongs to a part that has a bound and a clock, and a fault belongs to one request.

    head        up to `max_head_bytes`, else 431; within `head_seconds`, else 408; one valid host
    body        its bytes count against the worker's `HeldBytes` until the request is answered
    next head   is not read before the answer: its first bytes wait, and the client with them
    all heads   `server.MAX_EARLY_BYTES` of those that are incomplete or wait, else 503
    answer      a client that reads nothing for `WRITE_STALL_SECONDS` is disconnected
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

from aiohttp import HttpVersion10, HttpVersion11, StreamReader, hdrs, web
from aiohttp.http import HttpProcessingError, RawRequestMessage
from aiohttp.http_parser import HttpRequestParser, HttpRequestParserPy
from aiohttp.streams import EMPTY_PAYLOAD
from aiohttp.web_protocol import RequestPayloadError, _ErrInfo

from gateway.api.access_log import log_unread
from gateway.api.cors import Cors
from gateway.api.exchange import EXCHANGE, SERVER
from gateway.api.http import sending
from gateway.api.http.answering import Answering
from gateway.api.http.body import BodyRefused, HeldBytes, request_timeout
from gateway.api.http.connection_limits import (
    LINGER_SECONDS,
    ConnectionLimits,
    OpenConnections,
    overloaded,
    peer_address,
    render_error,
)
from gateway.api.http.framing import ChunkedEnd, ChunksTooLong, HeadEnd
from gateway.api.http.host import check_host
from gateway.api.http.json import error_response
from gateway.api.http.whole import WholeResponse
from gateway.errors import (
    INVALID_REQUEST,
    ErrorCode,
    GatewayError,
    InternalError,
    InvalidRequest,
    detach,
)
from gateway.ids import new_request_id
from gateway.tasks import Turns

REQUEST_TIMEOUT: Final = HTTPStatus.REQUEST_TIMEOUT

FAULT_SECONDS: Final = 0.25
"""How long the rest of a malformed head may take to arrive. Until then it is not known whether the
head is malformed (400) or too large (431)."""


MAX_UNREAD_BYTES: Final = 64 << 10
"""Of earlier answers, beyond which a request that was sent ahead waits. The buffers of a client
that never reads have room for thousands of small answers."""

UNREAD_CHECK_SECONDS: Final = 0.05


def has_compiled_parser() -> bool:
    """Whether aiohttp parses requests with compiled code; without it, it is much slower."""
    return HttpRequestParser is not HttpRequestParserPy


def _not_http(status: int = 400) -> GatewayError:
    return InvalidRequest("The request is not valid HTTP.", status=status)


def _check_head(message: RawRequestMessage) -> GatewayError | None:
    """The refusal of a head that the parser accepts although it should not."""
    if message.version not in (HttpVersion10, HttpVersion11):
        return _not_http()
    # Any other coding, and any in HTTP/1.0, leaves open where the body ends (RFC 9112 §6.1).
    coding = message.headers.get(hdrs.TRANSFER_ENCODING)
    if coding is not None and (
        coding.lower() != "chunked" or message.version != HttpVersion11 or not message.chunked
    ):
        return _not_http()
    return check_host(message)


def head_too_large(max_bytes: int) -> GatewayError:
    """The 431 for a head, or for the trailers and chunk extensions of a body."""
    return GatewayError(
        f"The head of the request is too large: this gateway accepts up to {max_bytes} bytes "
        "(server.max_head).",
        type=INVALID_REQUEST,
        code=ErrorCode.HEAD_TOO_LARGE,
    )


def _memory_full() -> GatewayError:
    return overloaded("This worker has no memory left for requests. Please try again.")


@dataclass(frozen=True, slots=True)
class Shared:
    """What all connections of a server share."""

    head_seconds: float
    limits: ConnectionLimits
    open_connections: OpenConnections
    body_memory: HeldBytes
    early_memory: HeldBytes
    turns: Turns
    """Taken by the first request of each connection."""
    cors: Cors


class Connection(Answering):
    """One client's connection."""

    __slots__ = (
        "_address",
        "_body_bytes",
        "_chunks",
        "_drops_input",
        "_early_bytes",
        "_fault",
        "_head",
        "_held",
        "_is_answering",
        "_lost",
        "_payload",
        "_progress_at",
        "_rest_bytes",
        "_shared",
        "_stream",
        "_timer",
        "_unread_bytes",
    )

    def __init__(self, server: web.Server, shared: Shared, address: str, **kwargs: Any) -> None:
        super().__init__(server, **kwargs)
        self._shared = shared
        self._address: str | None = address
        """The address that this connection is counted under; None when it is lost."""
        self._stream: asyncio.Transport | None = None
        """The transport, also while it closes."""
        self._timer: asyncio.TimerHandle | None = None
        """Of the head that is arriving."""
        self._head = HeadEnd()
        self._fault: GatewayError | None = None
        """Why the head that is arriving is malformed."""
        self._payload: StreamReader | None = None
        """The body of the latest request."""
        self._rest_bytes = 0
        """So many bytes of a body with a length are still to come."""
        self._chunks: ChunkedEnd | None = None
        """The body that is arriving, if it comes in chunks."""
        self._body_bytes = 0
        """Counted in the worker's `HeldBytes`."""
        self._held = b""
        """Received behind a request that is not answered yet."""
        self._early_bytes = 0
        """So many bytes are held of a head that is incomplete, or wait for an answer."""
        self._is_answering = False
        self._drops_input = False
        """Nothing more of this connection is read: its client broke a rule or a bound."""
        self._lost: asyncio.Future[None] | None = None
        self._unread_bytes = 0
        self._progress_at = 0.0

    # ── connecting ──────────────────────────────────────────────────────────────────────────

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Waits for the first request."""
        stream: Any = transport
        self._stream = stream
        super().connection_made(transport)
        # The idle time of a connection that has had a request would be a long one to wait for the
        # first.
        self._close_when_idle_for(self._shared.head_seconds)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Frees what the connection holds."""
        if self._address is not None:
            self._shared.open_connections.release(self._address)
            self._address = None
        self._release_early()
        if not self._request_in_progress:  # nor will it be: aiohttp's task ends
            self._release_body()
        self._stop_timer()
        if self._lost is not None and not self._lost.done():
            self._lost.set_result(None)
        super().connection_lost(exc)
        # A handler that reads the body got an exception from aiohttp. But aiohttp itself would wait
        # for the rest of a refused body as long as for a client that is there.
        if self._payload is not None and self._payload.exception() is None:
            self._payload.feed_eof()
        self._stream, self._payload, self._held = None, None, b""

    # ── receiving ───────────────────────────────────────────────────────────────────────────

    def data_received(self, data: bytes) -> None:
        """Gives the parser one part of a request after the other.

        Without data, it lets the parser go on with bytes that it kept while the body's reader was
        full.
        """
        if not data:
            self._parse_body(b"")
        if self._held:
            data, self._held = self._held + data, b""
        while data and not self._drops_input:
            if (self._close or self._force_close) and self._is_ending():
                return
            if self._rest_bytes or self._chunks is not None:
                data = self._receive_body(data)
            elif self._is_answering or not self._is_body_parsed():
                # Not read before the answer: otherwise a client could have any number of requests
                # parsed, and the clock of a head would run while it cannot be answered.
                self._wait_for_answer(data)
                return
            else:
                data = self._receive_head(data)

    def _is_ending(self) -> bool:
        """Whether a closing connection reads nothing more.

        The body of an open request still is read: it is answered.
        """
        return not (self._is_answering and (self._rest_bytes or self._chunks is not None))

    def _wait_for_answer(self, data: bytes) -> None:
        """Keeps what came behind a request, and reads no more until that is answered."""
        self._release_early()
        self._held = data if self._hold_early(len(data)) else b""
        self._drops_input = not self._held  # the answer closes the connection
        self._pause_transport_reading()

    def _receive_head(self, data: bytes) -> bytes:
        """Reads up to the end of the head; returns the bytes behind it."""
        end = self._head.find(data)
        max_bytes = self._shared.limits.max_head_bytes
        if self._head.size_bytes > max_bytes:
            self._refuse(head_too_large(max_bytes), data)
            return b""
        if self._fault is None:
            self._parse_head(data if end is None else data[:end], is_complete=end is not None)
        if end is not None and self._fault is not None:
            self._refuse(self._fault, data)
        return b"" if end is None else data[end:]

    def _parse_head(self, part: bytes, *, is_complete: bool) -> None:
        try:
            messages = self._parse(part)
        except HttpProcessingError:  # not kept: its traceback would keep this connection
            self._fault = _not_http()
            self._expect_head(FAULT_SECONDS)
            return
        if not messages:
            if not self._hold_early(len(part)):
                self._refuse(_memory_full(), part)
            elif self._head.is_awaited and self._timer is None:
                self._expect_head(self._shared.head_seconds)
            return
        # Never seen: that would be another end of the head than ours.
        if not is_complete or len(messages) > 1:
            self._refuse(_not_http(), part)
            return
        self._begin_request(*messages[0])

    def _begin_request(self, message: RawRequestMessage, payload: StreamReader) -> None:
        """A head is complete, and a body may follow."""
        if (refusal := _check_head(message)) is not None:
            origin = message.headers.get(hdrs.ORIGIN)
            self._shared.cors.add_headers(message.path, origin, refusal.headers)
            self._refuse(refusal)
            return
        self._stop_timer()
        self._release_early()
        self._head.begin()
        self._payload = None if payload is EMPTY_PAYLOAD else payload
        self._enqueue(message, payload)
        if message.method == hdrs.METH_CONNECT:
            self._drops_input = True  # there are no tunnels here
        elif message.chunked:
            self._chunks = ChunkedEnd(self._shared.limits.max_head_bytes)
        elif self._payload is not None:
            self._rest_bytes = int(message.headers[hdrs.CONTENT_LENGTH])
            if not self._shared.body_memory.has_room(self._rest_bytes):
                self._refuse_body(BodyRefused(_memory_full))

    def _receive_body(self, data: bytes) -> bytes:
        """Reads up to the end of the body; returns the bytes behind it."""
        if self._chunks is None:
            end = self._rest_bytes if self._rest_bytes <= len(data) else None
            self._rest_bytes -= len(data) if end is None else end
        else:
            try:
                end = self._chunks.find(data)
            except ChunksTooLong:
                max_bytes = self._shared.limits.max_head_bytes
                self._refuse_body(BodyRefused(lambda: head_too_large(max_bytes)))
                return b""
            if end is not None:
                self._chunks = None
        part = data if end is None else data[:end]
        if not self._hold_body(len(part)):
            self._refuse_body(BodyRefused(_memory_full))
            return b""
        self._parse_body(part)
        return b"" if end is None else data[end:]

    def _parse_body(self, part: bytes) -> None:
        try:
            messages = self._parse(part)
        except HttpProcessingError:
            self._refuse_body(RequestPayloadError("malformed body"))
            return
        if self._payload is None:
            return
        has_ended = not self._rest_bytes and self._chunks is None
        if self._payload.is_eof():
            is_good = has_ended and not messages
        else:
            # The parser keeps bytes of the body while its reader is full, but finds the same end.
            # The one in Python raises only some faults; the others are in the payload.
            is_good = (not has_ended or self._reading_paused) and not self._payload.exception()
        if not is_good:
            self._refuse_body(RequestPayloadError("malformed body"))

    def _hold_body(self, size_bytes: int) -> bool:
        # After the answer, the rest of a body is dropped as it arrives.
        if not self._is_answering:
            return True
        is_held = self._shared.body_memory.hold(size_bytes)
        self._body_bytes += size_bytes if is_held else 0
        return is_held

    def _release_body(self) -> None:
        if self._body_bytes:
            self._shared.body_memory.release(self._body_bytes)
            self._body_bytes = 0

    def _hold_early(self, size_bytes: int) -> bool:
        is_held = self._shared.early_memory.hold(size_bytes)
        self._early_bytes += size_bytes if is_held else 0
        return is_held

    def _release_early(self) -> None:
        if self._early_bytes:
            self._shared.early_memory.release(self._early_bytes)
            self._early_bytes = 0

    def _refuse_body(self, fault: RequestPayloadError) -> None:
        """Takes no more of a body. Its reader, if there is one, gets `fault`."""
        self._drops_input = True
        self._rest_bytes, self._chunks = 0, None
        if self._payload is None:
            return
        if self._is_answering:
            self._payload.set_exception(fault)
            # Again, when a reader that is being woken has gone back to wait, which aiohttp lets it.
            self._loop.call_soon(self._payload.set_exception, fault)
            return
        # aiohttp waits for the rest of a request that is already answered.
        self.close()
        self._payload.feed_eof()

    def _refuse(self, fault: GatewayError, head: bytes = b"") -> None:
        """Answers instead of a request that cannot be read, and reads nothing more.

        `head` is the latest part of its head, which names the page that sent it.
        """
        self._shared.cors.add_to_unread(head, fault.headers)
        self._stop_timer()
        self._release_early()
        self._drops_input = True
        self._fault = None
        self._enqueue(_ErrInfo(status=fault.status, exc=fault, message=""), EMPTY_PAYLOAD)

    def _parse(self, part: bytes) -> Any:
        """The requests whose head ends in this part: one at most. Raises `HttpProcessingError`."""
        if self._parser is None:
            return ()
        messages, is_upgraded, _ = self._parser.feed_data(part)
        if is_upgraded:
            self._parser.set_upgraded(False)  # any upgrade is declined, RFC 9110 §7.8
        return messages

    def _enqueue(self, message: RawRequestMessage | _ErrInfo, payload: StreamReader) -> None:
        """Has aiohttp's task answer a request."""
        self._is_answering = True
        self._request_count += 1
        self._messages.append((message, payload))
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _is_body_parsed(self) -> bool:
        """False while the parser keeps bytes of a body whose reader is full."""
        return self._payload is None or self._payload.is_eof()

    def resume_reading(self, resume_parser: bool = True) -> None:
        """The reader of a body has room again, or the body is complete."""
        # Called twice for each body. Only one that was paused is worth a call of the parser.
        if self._reading_paused:
            super().resume_reading(resume_parser)

    def _resume_transport_reading(self) -> None:
        if not self._held:
            super()._resume_transport_reading()

    # ── answering ───────────────────────────────────────────────────────────────────────────

    async def _handle_request(
        self,
        request: web.BaseRequest,
        start_time: float | None,
        request_handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]],
    ) -> tuple[web.StreamResponse, bool]:
        """Answers one request; then the next one is read.

        Ends the connection if the client is gone, or if its response cannot be finished.
        """
        try:
            if self._request_count == 1:
                # A flood of new connections would fill an iteration of the loop, and each request
                # on an open connection would wait for all of them.
                await self._shared.turns.next()
            if self._stream is None:
                # The client left before its turn. `connection_lost` has ended the body as if it
                # were complete, so it must not be read.
                return web.Response(), True
            self._request_in_progress, self._current_request = True, request
            try:
                response = await request_handler(request)
            except web.HTTPException as raised:
                response = raised
            except TimeoutError as raised:
                self.log_debug("Request handler timed out.", exc_info=raised)
                response = self.handle_error(request, 504)
            except Exception as raised:  # noqa: BLE001 - every fault is answered
                response = self.handle_error(request, 500, raised)
            finally:
                self._current_request = None
            # Over `raised`, whose traceback refers to this frame.
            response, is_lost = await self.finish_response(request, response, start_time)
            return response, is_lost
        except ConnectionError as error:
            # Not raised: its traceback would hold the request.
            detach(error)
            return web.Response(), True
        finally:
            self._request_in_progress = False
            if self._handler_waiter is not None:
                self._handler_waiter.set_result(None)
            self._release_body()
            self._is_answering = False
            if self._held:
                # Not now: what was sent ahead would be answered without a pause, until the client's
                # buffers are full, and no other client would have a turn.
                self._loop.call_soon(self._read_on)

    def _read_on(self) -> None:
        """Reads the bytes that came ahead, unless the client has yet to read its answers."""
        if not self._held or self._stream is None:  # lost, or more came, with which they were read
            return
        if sending.unread_bytes(self._stream) > MAX_UNREAD_BYTES:
            self._loop.call_later(UNREAD_CHECK_SECONDS, self._read_on)
            return
        self._release_early()
        data, self._held = self._held, b""
        self.data_received(data)
        if not self._reading_paused:
            self._resume_transport_reading()

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Sends the response; of a late or malformed request nothing more is read."""
        # Raised by aiohttp before the middleware, such as 417 for an unknown `Expect`.
        is_raised = isinstance(resp, web.HTTPException)
        if is_raised:
            resp = self.handle_error(request, resp.status)
        is_cut = (
            is_raised
            or self._drops_input
            or resp.status == REQUEST_TIMEOUT
            or request.content.exception() is not None
        )
        if is_cut:
            resp.force_close()
            # aiohttp would read the rest of the request for some seconds after the response.
            self._lingering_time = 0.0
        if isinstance(resp, WholeResponse):
            try:
                await resp.prepare(request)
            except ConnectionError:
                return resp, True
            sent: tuple[web.StreamResponse, bool] = resp, False
        else:
            sent = await super().finish_response(request, resp, start_time)
        if is_cut or (self._held and not resp.keep_alive):
            await self._linger()
        return sent

    async def _linger(self) -> None:
        """Drops what still arrives, until the client closes: a reset could overtake the answer."""
        self._drops_input, self._held = True, b""
        self._release_early()
        transport = self.transport
        if transport is None or transport.is_closing():
            return
        if transport.can_write_eof():
            transport.write_eof()
        self._resume_transport_reading()
        self._lost = self._loop.create_future()
        with suppress(TimeoutError):
            async with asyncio.timeout(LINGER_SECONDS):
                await self._lost

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answers malformed HTTP, and faults outside of the middleware, with a JSON error.

        Raises `ConnectionError`, which closes the connection, if the response has begun.
        """
        error: GatewayError = _not_http(status)
        has_begun = request.writer.output_size > 0
        if isinstance(exc, GatewayError) and not has_begun:
            error = exc
        elif status >= 500:
            self.log_exception("Error handling request", exc_info=exc)
            if (caught := sys.exception()) is not None:  # `exc`, or a timeout
                detach(caught)
            # A second response would become part of the body of the first.
            if has_begun:
                raise ConnectionError("the response has begun")
            error = InternalError()
        request_id = new_request_id()
        # A request that came to the middleware has its line.
        if request.get(EXCHANGE) is None:
            address = request.remote or ""
            if request.headers:  # aiohttp gives a malformed head a `dict`, which is empty
                address = self._shared.limits.proxies.client_address(address, request.headers)
            log_unread(request_id, address, error)
        response = error_response(error, request_id)
        response.headers["x-request-id"] = request_id
        response.headers[hdrs.SERVER] = SERVER
        # Without effect on the answer to an unreadable head: `_refuse` has added them.
        self._shared.cors.add_headers(
            request.path, request.headers.get(hdrs.ORIGIN), response.headers
        )
        response.force_close()
        return response

    def _make_error_handler(
        self, err_info: _ErrInfo
    ) -> Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]:
        """Answers malformed HTTP in HTTP/1.1, so that `Connection: close` is sent."""
        answer = super()._make_error_handler(err_info)

        async def answer_in_http_11(request: web.BaseRequest) -> web.StreamResponse:
            # aiohttp takes the request for HTTP/1.0, where a closing connection is not announced.
            request._version = HttpVersion11  # noqa: SLF001 - there is no other way to set it
            return await answer(request)

        return answer_in_http_11

    # ── clocks ──────────────────────────────────────────────────────────────────────────────

    def _expect_head(self, seconds: float) -> None:
        """Starts the clock of the head that is arriving, or the shorter one of a malformed one."""
        self._stop_timer()
        self._timer = self._loop.call_later(seconds, self._time_out_head)

    def _time_out_head(self) -> None:
        self._timer = None
        if self._fault is not None:
            self._refuse(self._fault)
            return
        # Without a complete head there is no request whose response aiohttp could send.
        if self.transport is not None:
            timeout, request_id = request_timeout(self._shared.head_seconds), new_request_id()
            log_unread(request_id, peer_address(self.transport), timeout)
            self.transport.write(render_error(timeout, request_id))
        self.force_close()

    def _close_when_idle_for(self, seconds: float) -> None:
        if self._keepalive_handle is not None:
            self._keepalive_handle.cancel()
        self._next_keepalive_close_time = self._loop.time() + seconds
        self._keepalive_handle = self._loop.call_later(seconds, self._process_keepalive)

    def _process_keepalive(self) -> None:
        if self._timer is not None:  # a head is arriving, which has a clock of its own
            self._close_when_idle_for(self._shared.head_seconds)
            return
        super()._process_keepalive()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def resume_writing(self) -> None:
        """The client has read most of what was written."""
        self._unread_bytes = 0
        super().resume_writing()

    def check_progress(self, now: float) -> None:
        """Disconnects the client if it has read nothing for `WRITE_STALL_SECONDS`."""
        if self._stream is None or not (self._stream.get_write_buffer_size() or self._held):
            self._unread_bytes = 0
            return
        # While a handler writes on, a slow client does not reduce what is unread.
        is_writing = self._request_in_progress and not self.writing_paused
        unread_bytes = sending.unread_bytes(self._stream)
        if is_writing or not self._unread_bytes or unread_bytes < self._unread_bytes:
            self._progress_at = now
        elif now - self._progress_at >= sending.WRITE_STALL_SECONDS:
            # `close` would wait until the client has read the rest.
            self._stream.abort()
        self._unread_bytes = unread_bytes
