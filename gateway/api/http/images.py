"""Responses with the bytes of an image."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Final

from aiohttp import hdrs, web

from gateway.api.http.ranges import requested_range
from gateway.api.http.sending import send_body
from gateway.api.http.whole import WholeResponse
from gateway.imagefile.check import DOCUMENTS, MEDIA_TYPES

_POLICY: Final = "default-src 'none'; sandbox"
_DOCUMENT_POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; sandbox"


def representation_headers(format: str, name: str, *, is_download: bool = False) -> dict[str, str]:
    """The headers of an image with this file name.

    Opened by itself an image can do nothing, whatever its bytes are, and its address, which may be
    a credential, is sent to no other server. An SVG is a document, so a browser only saves it; if
    it is shown all the same, its own styles and embedded images work, and nothing else does.
    """
    is_document = format in DOCUMENTS
    kind = "attachment" if is_document or is_download else "inline"
    return {
        hdrs.CONTENT_TYPE: MEDIA_TYPES[format],
        hdrs.CONTENT_DISPOSITION: f'{kind}; filename="{name}"',
        hdrs.ACCEPT_RANGES: "bytes",
        "X-Content-Type-Options": "nosniff",
        "Content-Security-Policy": _DOCUMENT_POLICY if is_document else _POLICY,
        "Referrer-Policy": "no-referrer",
    }


async def send_image(
    request: web.Request, data: bytes, headers: Mapping[str, str]
) -> web.StreamResponse:
    """Sends the image or the requested range of it; to HEAD the headers of the whole image."""
    size = len(data)
    part = requested_range(request, headers[hdrs.ETAG], size)
    sent = part or range(size)
    piece = memoryview(data)[sent.start : sent.stop]
    return await send_part(request, piece, part, size=size, headers=headers)


async def send_part(
    request: web.Request,
    piece: bytes | memoryview,
    part: range | None,
    *,
    size: int,
    headers: Mapping[str, str],
) -> web.StreamResponse:
    """Sends a piece of `size` bytes, which is that `part` of them, or all; to HEAD the headers."""
    status = HTTPStatus.OK if part is None else HTTPStatus.PARTIAL_CONTENT
    length = len(part or range(size))
    response = WholeResponse([piece], status=status, headers=headers, body_bytes=length)
    if part is not None:
        response.headers[hdrs.CONTENT_RANGE] = f"bytes {part.start}-{part.stop - 1}/{size}"
    return await send_body(request, response)
