"""Reads request bodies."""

from __future__ import annotations

import asyncio

from aiohttp import StreamReader, hdrs, web
from aiohttp.web_protocol import RequestPayloadError

from gateway.api.services import SERVICES
from gateway.errors import INVALID_REQUEST, GatewayError, InvalidRequest


async def invite_later(_request: web.Request) -> None:
    """What happens at once about `Expect: 100-continue`: nothing. `read_body` invites the body.

    A caller that is refused for its key, or for its body's length, then need not send it.
    """


async def read_body(request: web.Request) -> bytes:
    """The request's body, bounded in size and time; 413 and 408 otherwise."""
    services = request.app[SERVICES]
    most = services.max_body_bytes
    if (request.content_length or 0) > most:
        raise _too_large(most)
    if request.headers.get(hdrs.CONTENT_ENCODING, "identity").strip().lower() != "identity":
        raise _compressed()
    if request.headers.get(hdrs.EXPECT, "").strip().lower() == "100-continue":
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0
    try:
        if request.content.is_eof():  # small bodies come with the head and need no clock
            body = request.content.read_nowait()
        else:
            async with asyncio.timeout(services.body_timeout_seconds):
                body = await _read_chunks(request.content, most)
    except TimeoutError:
        raise _too_slow(services.body_timeout_seconds) from None
    except (OSError, RequestPayloadError) as error:
        raise InvalidRequest("The request's body ended before it was complete.") from error
    if len(body) > most:
        raise _too_large(most)
    return body


async def _read_chunks(content: StreamReader, most: int) -> bytes:
    """What comes, up to the first chunk beyond `most` bytes."""
    body = bytearray()
    async for chunk in content.iter_any():
        body += chunk
        if len(body) > most:
            break
    return bytes(body)


def _too_large(most: int) -> GatewayError:
    return GatewayError(
        f"The request body is too large: this gateway accepts up to {most} bytes "
        "(GATEWAY_MAX_BODY).",
        status=413,
        type=INVALID_REQUEST,
        code="request_too_large",
    )


def _compressed() -> GatewayError:
    return InvalidRequest(
        "Compressed request bodies are not supported. Please send the JSON as it is, without "
        "'Content-Encoding'.",
        code="unsupported_content_encoding",
        headers={hdrs.ACCEPT_ENCODING: "identity"},
    )


def _too_slow(seconds: float) -> GatewayError:
    return GatewayError(
        f"The request was not complete within {seconds:g} seconds.",
        status=408,
        type=INVALID_REQUEST,
        code="request_timeout",
    )
