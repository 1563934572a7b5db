"""Responses with the bytes of an image."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Final

from aiohttp import hdrs, web

from gateway.api.http.ranges import requested_range
from gateway.api.http.sending import send_body

SECURITY_HEADERS: Final = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; sandbox",
    "Referrer-Policy": "no-referrer",
}
"""Opened by itself an image can do nothing, whatever its bytes are, and its address, which may be a
credential, is sent to no other server."""


async def send_image(
    request: web.Request, data: bytes, headers: Mapping[str, str]
) -> web.StreamResponse:
    """Sends the image or the requested range of it; to HEAD the headers of the whole image."""
    size = len(data)
    part = requested_range(request, headers[hdrs.ETAG], size)
    response = web.StreamResponse(headers=headers)
    if part is not None:
        response.set_status(HTTPStatus.PARTIAL_CONTENT)
        response.headers[hdrs.CONTENT_RANGE] = f"bytes {part.start}-{part.stop - 1}/{size}"
    sent = part or range(size)
    response.content_length = len(sent)
    return await send_body(request, response, [memoryview(data)[sent.start : sent.stop]])
