"""Responses that are complete before they begin: head and body leave in one write.

aiohttp writes the head of a `StreamResponse` by itself, which is a system call and, without
Nagle's algorithm, a packet of its own; and it takes a dozen coroutines for the two. The bytes are
the same. aiohttp's serializer writes the head too, and refuses control characters in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from aiohttp import HttpVersion10, HttpVersion11, hdrs, web
from aiohttp.helpers import rfc822_formatted_time
from aiohttp.http import SERVER_SOFTWARE
from aiohttp.http_writer import _serialize_headers

from gateway.api.http.parts import PART_BYTES, write_in_turns

if TYPE_CHECKING:
    from aiohttp.abc import AbstractStreamWriter

JOIN_BYTES: Final = 64 * 1024
"""Bodies up to this size are joined with their head; larger ones are not copied."""


class WholeResponse(web.StreamResponse):
    """A response with a body in pieces. Its status allows a body."""

    def __init__(
        self,
        pieces: Sequence[bytes | memoryview],
        *,
        status: int = 200,
        content_type: str | None = None,
        headers: Mapping[str, str] | None = None,
        body_bytes: int | None = None,
    ) -> None:
        """A type of the content is in `content_type` or in `headers`.

        `body_bytes` is the length that an answer to HEAD names without having the body.
        """
        super().__init__(status=status, headers=headers)
        self._pieces = pieces
        self.body_bytes = sum(map(len, pieces)) if body_bytes is None else body_bytes
        if content_type is not None:
            self._headers[hdrs.CONTENT_TYPE] = content_type
        self._headers[hdrs.CONTENT_LENGTH] = str(self.body_bytes)

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        """Sends everything, to HEAD the head; waits until the client has read nearly all of it.

        Raises `ConnectionError`.
        """
        if self._eof_sent:
            return None
        transport = request.transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError("the client has disconnected")
        self._req, self._payload_writer = request, request.writer
        self._add_headers(request)
        # None for a request that was refused before it had a route.
        if isinstance(request, web.Request) and request._match_info is not None:  # noqa: SLF001
            # As `Signal.send`, which would be a coroutine more.
            for receiver in request.app.on_response_prepare:
                await receiver(request, self)
        head = self._head(request)
        # By it, `handle_error` knows that a response has begun.
        request.writer.output_size += len(head)
        if request.method == hdrs.METH_HEAD:
            transport.write(head)
        elif self.body_bytes <= JOIN_BYTES:
            transport.write(b"".join((head, *self._pieces)))
        elif self.body_bytes <= PART_BYTES:
            transport.writelines((head, *self._pieces))
        else:
            await write_in_turns(request, transport, (head, *self._pieces))
        if request.protocol.writing_paused:
            await request.writer.drain()
            if transport.is_closing():
                raise ConnectionResetError("the client has disconnected, or stopped reading")
        self._end()
        return None

    def _add_headers(self, request: web.BaseRequest) -> None:
        """Those that aiohttp adds to a response with a length, in its order."""
        headers = self._headers
        if self._cookies:
            for cookie in self._cookies.values():
                headers.add(hdrs.SET_COOKIE, cookie.output(header="")[1:])
        if self._keep_alive is None:
            self._keep_alive = request.keep_alive
        if hdrs.DATE not in headers:
            headers[hdrs.DATE] = rfc822_formatted_time()
        headers.setdefault(hdrs.SERVER, SERVER_SOFTWARE)
        if hdrs.CONNECTION not in headers:
            if self._keep_alive and request.version == HttpVersion10:
                headers[hdrs.CONNECTION] = "keep-alive"
            elif not self._keep_alive and request.version == HttpVersion11:
                headers[hdrs.CONNECTION] = "close"

    def _head(self, request: web.BaseRequest) -> bytes:
        major, minor = request.version
        status_line = f"HTTP/{major}.{minor} {self._status} {self._reason}"
        return _serialize_headers(status_line, self._headers)

    def _end(self) -> None:
        self._eof_sent = True
        self._req = self._payload_writer = None
        self._pieces = ()

    async def write_eof(self, data: bytes = b"") -> None:
        """Nothing is left to send."""
