"""Reads request bodies, within bounds of size and time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from aiohttp import StreamReader, hdrs, web
from aiohttp.http import HttpProcessingError
from aiohttp.streams import EMPTY_PAYLOAD
from aiohttp.web_protocol import RequestPayloadError

from gateway.api.services import SERVICES
from gateway.errors import INVALID_REQUEST, ErrorCode, GatewayError, InvalidRequest
from gateway.net.complete_body import take_complete


class BodyRefused(RequestPayloadError):
    """The connection takes no more of a body; `answer` makes the error for its client."""

    def __init__(self, answer: Callable[[], GatewayError]) -> None:
        super().__init__()
        # Not the error itself: its traceback would keep this request alive.
        self.answer = answer


class HeldBytes:
    """Counts bytes that a worker holds for all of its connections, up to a bound."""

    __slots__ = ("_held_bytes", "_max_bytes")

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._held_bytes = 0

    def has_room(self, size_bytes: int) -> bool:
        """Whether so many more fit at this moment."""
        return self._held_bytes + size_bytes <= self._max_bytes

    def hold(self, size_bytes: int) -> bool:
        """Counts bytes that have arrived; False if there is no room for them."""
        if not self.has_room(size_bytes):
            return False
        self._held_bytes += size_bytes
        return True

    def release(self, size_bytes: int) -> None:
        """They are needed no longer."""
        self._held_bytes -= size_bytes


class Holding:
    """The bytes of one connection that its worker's `HeldBytes` counts."""

    __slots__ = ("_memory", "_size_bytes")

    def __init__(self, memory: HeldBytes) -> None:
        self._memory = memory
        self._size_bytes = 0

    def hold(self, size_bytes: int) -> bool:
        """Counts more bytes; False if there is no room for them."""
        is_held = self._memory.hold(size_bytes)
        self._size_bytes += size_bytes if is_held else 0
        return is_held

    def release(self) -> None:
        """None of them is needed any longer."""
        if self._size_bytes:
            self._memory.release(self._size_bytes)
            self._size_bytes = 0


async def defer_continue(_request: web.Request) -> None:
    """Sends no `100 Continue` when the head arrives; `read_body` sends it.

    A client that is refused for its key, or for the length of its body, need not send the body.
    """


async def read_body(request: web.Request) -> bytes:
    """The body of the request. Raises 408 or 413 if it is too slow or too large."""
    settings = request.app[SERVICES].settings
    max_bytes, seconds = settings.max_body_bytes, settings.body_timeout_seconds
    headers, content = request.headers, request.content
    if (request.content_length or 0) > max_bytes:
        raise _too_large(max_bytes)
    if hdrs.CONTENT_ENCODING in headers:
        _check_encoding(headers[hdrs.CONTENT_ENCODING])
    if isinstance(fault := content.exception(), BodyRefused):
        raise fault.answer()
    if hdrs.EXPECT in headers and headers[hdrs.EXPECT].strip().lower() == "100-continue":
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        # aiohttp and `handle_error` take a size above zero for a response that has begun.
        request.writer.output_size = 0
    try:
        if content.is_eof():  # small bodies come with the head and need no timer
            body = take_complete(content)
        else:
            async with asyncio.timeout(seconds):
                body = await _read_chunks(content, max_bytes)
    # Before OSError, which is its base class.
    except TimeoutError:
        raise request_timeout(seconds) from None
    except BodyRefused as fault:
        raise fault.answer() from None
    except (OSError, RequestPayloadError, HttpProcessingError) as error:
        raise InvalidRequest("The request's body ended before it was complete.") from error
    # Again, because a chunked request has no `Content-Length`.
    if len(body) > max_bytes:
        raise _too_large(max_bytes)
    # A reader takes a kilobyte, and would stay for as long as upstream takes.
    request._payload = request._cache["content"] = EMPTY_PAYLOAD  # noqa: SLF001 - no other way
    return body


def _check_encoding(encoding: str) -> None:
    if encoding.strip().lower() != "identity":
        raise InvalidRequest(
            "Compressed request bodies are not supported. Please send the JSON as it is, without "
            "'Content-Encoding'.",
            code=ErrorCode.UNSUPPORTED_CONTENT_ENCODING,
            headers={hdrs.ACCEPT_ENCODING: "identity"},
        )


async def _read_chunks(content: StreamReader, max_bytes: int) -> bytes:
    """The body, or its start up to the first chunk beyond `max_bytes`."""
    body = bytearray()
    async for chunk in content.iter_any():
        body += chunk
        if len(body) > max_bytes:
            break
    return bytes(body)


def request_timeout(seconds: float) -> GatewayError:
    """The 408 for a head or a body that is not complete in time."""
    return GatewayError(
        f"The request was not complete within {seconds:g} seconds.",
        type=INVALID_REQUEST,
        code=ErrorCode.REQUEST_TIMEOUT,
    )


def _too_large(max_bytes: int) -> GatewayError:
    return GatewayError(
        f"The request body is too large: this gateway accepts up to {max_bytes} bytes "
        "(GATEWAY_MAX_BODY).",
        type=INVALID_REQUEST,
        code=ErrorCode.REQUEST_TOO_LARGE,
    )
