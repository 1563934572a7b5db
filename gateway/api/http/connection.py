"""The HTTP connection: bounds of heads, bodies and pipelining. `answering` is its other half.

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
from contextlib import suppress
from typing import Any, Final

from aiohttp import StreamReader, hdrs, web
from aiohttp.http import HttpProcessingError, RawRequestMessage
from aiohttp.http_parser import HttpRequestParser, HttpRequestParserPy
from aiohttp.streams import EMPTY_PAYLOAD
from aiohttp.web_protocol import RequestPayloadError, _ErrInfo

from gateway.api.access_log import log_unread
from gateway.api.http import sending
from gateway.api.http.answering import Answering, Shared
from gateway.api.http.body import BodyRefused, Holding, request_timeout
from gateway.api.http.connection_limits import LINGER_SECONDS, peer_address, render_error
from gateway.api.http.framing import ChunkedEnd, ChunksTooLong, HeadEnd
from gateway.api.http.refusals import check_head, head_too_large, memory_full, not_http
from gateway.errors import GatewayError
from gateway.ids import new_request_id

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


class Connection(Answering):
    """One client's connection."""

    __slots__ = (
        "_address",
        "_body",
        "_chunks",
        "_early",
        "_fault",
        "_head",
        "_held",
        "_is_answering",
        "_lost",
        "_payload",
        "_progress_at",
        "_rest_bytes",
        "_timer",
        "_unread_bytes",
    )

    def __init__(self, server: web.Server, shared: Shared, address: str, **kwargs: Any) -> None:
        super().__init__(server, shared, **kwargs)
        self._address: str | None = address
        """The address that this connection is counted under; None when it is lost."""
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
        self._body = Holding(shared.body_memory)
        """The bytes of the request that is being answered."""
        self._held = b""
        """Received behind a request that is not answered yet."""
        self._early = Holding(shared.early_memory)
        """The bytes of a head that is incomplete, or that wait for an answer."""
        self._is_answering = False
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
        self._early.release()
        if not self._request_in_progress:  # nor will it be: aiohttp's task ends
            self._body.release()
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
        self._early.release()
        self._held = data if self._early.hold(len(data)) else b""
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
            self._fault = not_http()
            self._expect_head(FAULT_SECONDS)
            return
        if not messages:
            if not self._early.hold(len(part)):
                self._refuse(memory_full(), part)
            elif self._head.is_awaited and self._timer is None:
                self._expect_head(self._shared.head_seconds)
            return
        # Never seen: that would be another end of the head than ours.
        if not is_complete or len(messages) > 1:
            self._refuse(not_http(), part)
            return
        self._begin_request(*messages[0])

    def _begin_request(self, message: RawRequestMessage, payload: StreamReader) -> None:
        """A head is complete, and a body may follow."""
        if (refusal := check_head(message)) is not None:
            origin = message.headers.get(hdrs.ORIGIN)
            self._shared.cors.add_headers(message.path, origin, refusal.headers)
            self._refuse(refusal)
            return
        self._stop_timer()
        if not self._request_count and self._keepalive_handle is not None:
            # Of the first head. Half a kilobyte; the clock of an idle connection is another one.
            self._keepalive_handle.cancel()
            self._keepalive_handle = None
        self._early.release()
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
                self._refuse_body(BodyRefused(memory_full))

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
            self._refuse_body(BodyRefused(memory_full))
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
        elif has_ended and self._payload.is_eof():
            self._payload = None

    def _hold_body(self, size_bytes: int) -> bool:
        # After the answer, the rest of a body is dropped as it arrives.
        if not self._is_answering:
            return True
        return self._body.hold(size_bytes)

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
        self._early.release()
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

    # ── the next request ────────────────────────────────────────────────────────────────────

    def end_request(self) -> None:
        """The request is answered, so its bytes need not be held, and the next one is read."""
        self._body.release()
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
        self._early.release()
        data, self._held = self._held, b""
        self.data_received(data)
        if not self._reading_paused:
            self._resume_transport_reading()

    async def linger(self) -> None:
        """Drops what still arrives, until the client closes: a reset could overtake the answer."""
        self._drops_input, self._held = True, b""
        self._early.release()
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

    @property
    def has_early(self) -> bool:
        """Whether bytes of a further request wait."""
        return bool(self._held)

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
