"""Connections to upstream and to the servers of links, which answer one request at a time.

aiohttp reuses a connection on which bytes have arrived that no request asked for, and takes them
for the answer to the next request (its issue 13656). Here such a connection is closed (RFC 9112
§9.2): while it is idle, before a request is written on it, and when more bytes arrive than the
answer has. The heads and the chunk framing of an answer are bounded too, because the bounds of
`client`, `stream` and `fetch` only see its body. A large body of known length is received past
aiohttp's parser, without copies (`receiving`).

This replaces private parts of aiohttp: `tests/test_private_parts.py` fails if they change.
"""

from __future__ import annotations

import asyncio
import re
import select
import time
from collections import deque
from enum import Enum, auto
from functools import partial
from itertools import pairwise
from typing import Any, Final, cast

import aiohttp
import structlog
from aiohttp.client_proto import ResponseHandler
from aiohttp.http import RawResponseMessage
from aiohttp.streams import StreamReader

from gateway.net.sse import has_lines
from gateway.upstream.receiving import ReceiveTurns, WholeBody, may_end_chunks, switch_protocol

MAX_HEAD_BYTES: Final = 64 * 1024
"""Of the head of an answer together with all interim responses (1xx) before it."""

MAX_INTERIM_RESPONSES: Final = 256
"""Some servers send one every few seconds to keep a connection alive."""

MAX_FRAMING_BYTES: Final = 32 * 1024
"""Of chunk sizes, extensions and trailers, beside `_FRAMING_SHARE` of the body."""

_FRAMING_SHARE: Final = 1 / 8
"""Servers send chunks of kilobytes: framing is less than a hundredth of their bytes. Some write
each piece of an encoder as a chunk: a line of base64 has 64 or 76 bytes, and 6 of framing."""

_PIECE_BYTES: Final = 16 * 1024
"""Of many small chunks that are parsed before their framing is counted: a few milliseconds."""

_MANY_LINES: Final = 256
"""In one segment; each chunk has two besides its own."""

REST_SECONDS: Final = 1.0
"""How long a connection is idle before it is reused. Bytes that arrive once the next request is
written cannot be told from its answer, so late ones get the time to arrive before. Under steady
load, the pool has as many idle connections as there are requests in that time, and opens none."""

_HEAD_END: Final = re.compile(rb"\n\r?\n")
_HEAD_END_OVERLAP_BYTES: Final = 2
"""A head may end at the start of a segment, with up to two bytes of its end in the last one."""

_SWITCHING_PROTOCOLS: Final = 101

MIN_WHOLE_BYTES: Final = 256 * 1024
MAX_WHOLE_BYTES: Final = 16 * 1024 * 1024
"""Bodies of such lengths are received into one buffer. Memory for a larger one is not allocated
before its bytes come."""

log = structlog.get_logger(__name__)


class AnswerRejected(aiohttp.ClientPayloadError):
    """An answer exceeds a bound of its heads or of its framing. Its connection is closed."""


class _Phase(Enum):
    IDLE = auto()
    """No request is under way."""
    ACQUIRED = auto()
    """A request will be written next."""
    AWAITING = auto()
    """A request was written at least in part, and its answer is not complete."""


class Connection(ResponseHandler):
    """Closes itself when bytes arrive that belong to no answer, or when an answer is out of bounds.

    Every answer is parsed up to its last byte and not beyond, so what follows is never mistaken for
    a part of it.
    """

    # aiohttp's attributes are in a dict, which with these would take a kilobyte more.
    __slots__ = (
        "_answer",
        "_body_bytes",
        "_content_length",
        "_has_more",
        "_head_bytes",
        "_head_end",
        "_heads",
        "_held",
        "_is_chunked",
        "_is_waiting",
        "_phase",
        "_poll",
        "_turns",
        "_was_used",
        "_whole",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop, turns: ReceiveTurns | None = None) -> None:
        super().__init__(loop)
        self._turns = turns or ReceiveTurns(loop)
        self._is_waiting = False
        """It does not read before its next turn."""
        self._phase = _Phase.ACQUIRED  # aiohttp connects when it has a request
        self._was_used = False
        self._poll: select.poll | None = None
        """Of the socket, which stays the same until the connection is closed."""
        self._reset()

    def _reset(self) -> None:
        # The queue of the heads of answers, while there is none. One has room for 64.
        self._buffer = cast(Any, ())
        self._answer: StreamReader | None = None
        """The body of the answer, once its head was parsed."""
        self._content_length: int | None = None
        self._is_chunked = False
        self._head_bytes = 0
        """Of the heads so far."""
        self._head_end = b""
        """The last bytes of an unfinished head."""
        self._heads = 0
        self._body_bytes = 0
        """Parsed so far, including chunk framing."""
        self._held = b""
        """Received while aiohttp's reader is full, and not parsed yet."""
        self._has_more = False
        """Received bytes follow those that are being parsed."""
        self._whole: WholeBody | None = None
        """The body, if it is received past the parser."""

    # ── a request ──

    def is_connected(self) -> bool:
        # aiohttp asks this before it reuses a connection. Bytes, or the connection's end, may have
        # arrived that the event loop has not read yet.
        return super().is_connected() and not (
            self._phase is _Phase.IDLE and self._has_unread_bytes()
        )

    def set_response_params(self, **given: Any) -> None:
        # aiohttp calls it before it writes a request, but after it has written a CONNECT.
        if self._phase is _Phase.IDLE:
            self._reset()
            self._phase = _Phase.ACQUIRED
        super().set_response_params(**given)

    def expect_answer(self) -> None:
        """Called just before a request is written. Later calls have no effect.

        Raises `ClientConnectionResetError` if the connection was closed, so that nothing is sent.
        """
        if self._phase is not _Phase.ACQUIRED:
            return
        if self.transport is not None and not self.transport.is_closing():
            # The last bytes of a handshake may not have been read on a new TLS connection.
            is_new_tls = not self._was_used and self.transport.get_extra_info("ssl_object")
            if is_new_tls or not self._has_unread_bytes():
                self._phase = _Phase.AWAITING
                self._was_used = True
                return
            self._close_unsolicited()
        raise aiohttp.ClientConnectionResetError("closed before the request was written")

    def start_timeout(self) -> None:
        # aiohttp calls it just before it writes a request without a body.
        self.expect_answer()
        super().start_timeout()

    @property
    def should_close(self) -> bool:
        # aiohttp asks this at the end of a body, while its last segment is still being parsed.
        return self._has_more or bool(self._held) or self._has_unsent or super().should_close

    def connection_lost(self, exc: BaseException | None) -> None:
        self._end_complete()
        super().connection_lost(exc)
        self._answer = self._whole = None  # they refer to this connection

    # ── its answer ──

    def data_received(self, data: bytes) -> None:
        if not data:  # aiohttp's reader has room again
            if self._phase is _Phase.AWAITING:
                self._resume()
        elif self._phase is not _Phase.AWAITING:
            self._close_unsolicited()
        elif self._held or self._reading_paused:
            self._held += data
        else:
            self._receive(data)
            if self._whole is None:
                self._take_turn(len(data))

    def received_directly(self, size_bytes: int) -> None:
        """Bytes of the body were received into its buffer."""
        if self._read_timeout:
            self._reschedule_timeout()
        if self._whole is not None and not self._whole.missing_bytes:
            # Without a pause: bytes behind the body must be seen while the connection rests.
            self._turns.spend(size_bytes)
            if self._is_tls and self.transport is not None:
                # TLS may have read bytes behind the body, which `_has_unread_bytes` cannot see. It
                # has scheduled its next read, so they arrive before `_end_complete` runs.
                switch_protocol(self.transport, self)
                self._loop.call_soon(self._end_complete)
            else:
                self._end_complete()
            return
        self._take_turn(size_bytes)

    def feed_data(self, data: tuple[RawResponseMessage, StreamReader], size: int = 0) -> None:
        # aiohttp calls it with each parsed head.
        message, payload = data
        if self._answer is not None:
            return  # it answers no request; `_receive_body` closes the connection
        if 100 <= message.code < 200 and message.code != _SWITCHING_PROTOCOLS:
            return  # aiohttp would skip it too, but in a turn of the event loop for each
        self._answer = payload
        self._is_chunked = message.chunked
        length = message.headers.get("Content-Length", "")
        if not message.chunked and length.isascii() and length.isdigit():
            self._content_length = int(length)
        size_bytes = self._content_length or 0
        is_empty = payload.is_eof()  # whatever length a 204 announces
        if not is_empty and _is_whole(message, size_bytes):
            self._whole = WholeBody(size_bytes, self, self._turns)
            # Else aiohttp would stop reading when it gets all of the body at once.
            payload.set_read_chunk_size(size_bytes)
        self._buffer = deque()
        super().feed_data(data, size)

    def _resume(self) -> None:
        self._parse(b"", has_more=False)
        if not self._reading_paused:
            held, self._held = self._held, b""
            self._receive(held)

    def _receive(self, data: bytes) -> None:
        if self._answer is None:
            data = self._receive_heads(data)
        if self._whole is not None:
            self._receive_whole(self._whole, data)
        elif data and self._phase is _Phase.AWAITING:
            self._receive_body(data)
        if self._phase is _Phase.AWAITING and self._is_complete:
            self._phase = _Phase.IDLE

    def _receive_heads(self, data: bytes) -> bytes:
        """Parses the heads, each by itself, up to the final one. Returns what follows it."""
        overlap = len(self._head_end)
        window = self._head_end + data[: MAX_HEAD_BYTES - self._head_bytes + 1]
        start, search_from = overlap, 0
        while self._answer is None and start < len(window):
            found = _HEAD_END.search(window, search_from)
            end = found.end() if found else len(window)
            self._head_bytes += end - start
            if self._head_bytes > MAX_HEAD_BYTES:
                return self._reject("heads_too_large")
            self._parse(window[start:end], has_more=end < len(window))
            if self._has_failed:
                return self._shut()
            self._heads += bool(found)  # or blank lines before one
            if self._heads > MAX_INTERIM_RESPONSES and self._answer is None:
                return self._reject("too_many_interim_responses")
            self._head_end = b"" if found else window[-_HEAD_END_OVERLAP_BYTES:]
            start = search_from = end
        return data[start - overlap :]

    def _receive_body(self, data: bytes) -> None:
        for start, end in pairwise(self._cuts(data)):
            if self._is_complete:
                self._close_unsolicited()
                return
            if self._reading_paused:
                self._held = data[start:]
                return
            self._parse(data[start:end], has_more=end < len(data))
            self._body_bytes += end - start
            if self._has_failed:
                self._shut()
                return
            if self._is_chunked and self._framing_is_too_large():
                self._reject("chunk_framing_too_large")
                return

    def _receive_whole(self, whole: WholeBody, data: bytes) -> None:
        """Takes what came with the head; the rest of the body goes into its buffer directly."""
        if self.transport is None or self._phase is not _Phase.AWAITING:
            return
        is_followed = len(data) > whole.missing_bytes
        whole.add(data[: whole.missing_bytes] if is_followed else data)
        if whole.missing_bytes:
            switch_protocol(self.transport, cast(Any, whole))
            return
        self._has_more = is_followed
        self._end_whole(whole)
        if is_followed:
            self._close_unsolicited()

    def _end_complete(self) -> None:
        """Ends a whole body of which nothing is missing, unless it has ended before."""
        if self._whole is not None and not self._whole.missing_bytes:
            self._end_whole(self._whole)

    def _end_whole(self, whole: WholeBody) -> None:
        """The body is complete: its reader gets it in one piece."""
        answer, transport, self._whole = self._answer, self.transport, None
        # The parser has seen no end of the body, and would fail the answer when the connection is
        # lost. aiohttp makes a new one for each request.
        self._parser = self._payload = None
        if transport is not None and transport.get_protocol() is not self:
            switch_protocol(transport, self)
        if answer is not None:
            answer.feed_data(cast(bytes, whole.release()))
            answer.feed_eof()
        self._has_more = False
        if self._phase is _Phase.AWAITING:
            self._phase = _Phase.IDLE

    # ── turns ──

    def _take_turn(self, size_bytes: int) -> None:
        """Pauses until its next turn if there was much to receive in this one."""
        may_go_on = self._turns.spend(size_bytes)
        # An idle connection always reads: what arrives then closes it.
        is_receiving = self._phase is _Phase.AWAITING and self.transport is not None
        if is_receiving and not may_go_on:
            self._is_waiting = True
            self._pause_transport_reading()
            self._turns.wait(self._go_on)

    def _go_on(self) -> None:
        self._is_waiting = False
        if not (self._reading_paused or self._buffer_paused):
            self._resume_transport_reading()

    def _resume_transport_reading(self) -> None:
        if not self._is_waiting:
            super()._resume_transport_reading()

    # ── parsing ──

    def _cuts(self, data: bytes) -> list[int]:
        """Offsets between which received bytes are parsed, so that none lies beyond the body.

        Where a chunked body ends is known only to the parser. If it ends before the last byte that
        was received, more bytes follow it.
        """
        length = len(data)
        if self._is_chunked:
            step = _PIECE_BYTES if has_lines(data, _MANY_LINES) else length
            if step == length and not may_end_chunks(data):
                return [0, length]  # each cut is a copy
            return [*range(0, length - 1, step), length - 1, length]
        if self._content_length is None:  # the body ends with the connection
            return [0, length]
        left = max(0, self._content_length - self._body_bytes)
        return [0, left, length] if left < length else [0, length]

    def _parse(self, data: bytes, *, has_more: bool) -> None:
        self._has_more = has_more
        super().data_received(data)
        self._has_more = False

    def _framing_is_too_large(self) -> bool:
        if self._answer is None or self._reading_paused:  # the parser may hold bytes back
            return False
        content_bytes = self._answer.total_raw_bytes
        allowed = MAX_FRAMING_BYTES + _FRAMING_SHARE * content_bytes
        return self._body_bytes - content_bytes > allowed

    @property
    def _is_complete(self) -> bool:
        return self._answer is not None and self._answer.is_eof()

    @property
    def _has_failed(self) -> bool:
        return self._exception is not None

    @property
    def _has_unsent(self) -> bool:
        """Whether the answer came before the whole request was sent."""
        return self.transport is not None and bool(self.transport.get_write_buffer_size())

    @property
    def _is_tls(self) -> bool:
        return self.transport is not None and bool(self.transport.get_extra_info("ssl_object"))

    def _has_unread_bytes(self) -> bool:
        """Whether the socket can be read: bytes have arrived, or the connection's end."""
        if self.transport is None:
            return False
        if self._poll is None:
            self._poll = select.poll()  # `select.select` fails for file descriptors above 1023
            socket = self.transport.get_extra_info("socket")
            self._poll.register(socket.fileno(), select.POLLIN)
        return bool(self._poll.poll(0))

    # ── closing ──

    def _close_unsolicited(self) -> None:
        """Closes the connection because of bytes that belong to no answer.

        An answer that is complete is still delivered.
        """
        log.warning("upstream_unsolicited_bytes", peer=self._peer)
        self._shut()

    def _reject(self, reason: str) -> bytes:
        log.warning("upstream_answer_rejected", reason=reason, peer=self._peer)
        self.set_exception(AnswerRejected(reason))
        return self._shut()

    def _shut(self) -> bytes:
        """Closes the connection, and drops what was received. Returns no bytes."""
        if self._phase is _Phase.AWAITING:
            self._phase = _Phase.IDLE
        self._held, self._whole = b"", None
        self.force_close()
        if self._answer is not None and not self._answer.is_eof():
            is_rejected = isinstance(self._exception, AnswerRejected)
            error = self._exception if is_rejected else aiohttp.ClientPayloadError("malformed")
            self._answer.set_exception(cast(Exception, error))
        # Without them aiohttp cannot end an answer again that is complete but not read yet.
        self._parser = self._payload = None
        transport, self.transport = self.transport, None
        if transport is not None:
            transport.abort()  # `close` may read on for a while with TLS
        return b""

    @property
    def _peer(self) -> str | None:
        peer = self.transport and self.transport.get_extra_info("peername")
        return f"{peer[0]}:{peer[1]}" if peer else None


def _is_whole(message: RawResponseMessage, length: int) -> bool:
    """Whether a body is received into one buffer: it is not read before its end.

    Events are, and the body of an error counts as far as it has come.
    """
    return (
        MIN_WHOLE_BYTES <= length <= MAX_WHOLE_BYTES
        and 200 <= message.code < 300
        and not message.compression
        and not message.headers.get("Content-Type", "").lower().startswith("text/event-stream")
    )


class Connector(aiohttp.TCPConnector):
    """A connection pool of `Connection`, each of which rests between two requests."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self._factory = cast(Any, partial(Connection, self._loop, ReceiveTurns(self._loop)))

    async def _get(self, key: Any, traces: Any) -> Any:
        # The one that is idle for the longest time comes first.
        idle = self._conns.get(key)
        if idle and time.monotonic() - idle[0][1] < REST_SECONDS:
            return None
        return await super()._get(key, traces)
