"""`GET` and `HEAD` of signed links: `docs/reference/cache.md#links`."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from http import HTTPStatus
from typing import Final

from aiohttp import hdrs, web

from gateway.api.exchange import EXCHANGE
from gateway.api.http.images import representation_headers, send_image, send_part
from gateway.api.http.ranges import is_not_modified, requested_range
from gateway.api.services import SERVICES
from gateway.cache.image_index import IMAGE_NAME, image_gone
from gateway.errors import INVALID_REQUEST, ErrorCode, GatewayError, StoreUnavailable
from gateway.imagefile.check import DOCUMENTS

CROSS_ORIGIN: Final = {"Cross-Origin-Resource-Policy": "cross-origin"}
"""Any page may show the image of a link."""

PARTIAL: Final = frozenset({hdrs.RANGE, hdrs.IF_MATCH, hdrs.IF_NONE_MATCH})
"""Headers with which a GET may need only some of the bytes, or none."""

REDIRECT_SECONDS: Final = 60
"""How long a presigned URL works, unless the link expires sooner."""

OWN_TAGS: Final = frozenset({hdrs.IF_MATCH, hdrs.IF_RANGE})
"""Headers with an `ETag` of the gateway. A redirected client would repeat them at the bucket, whose
tags differ: it would answer 412, or send the whole image to a client that has most of it."""


async def show_image(request: web.Request) -> web.StreamResponse:
    """Serves the image of a signed link. The signature is the credential; a key is ignored."""
    try:
        return await _serve(request)
    except GatewayError:
        # Another worker may know the image, or the signing key, a moment later.
        request[EXCHANGE].headers[hdrs.CACHE_CONTROL] = "no-store"
        raise


async def _serve(request: web.Request) -> web.StreamResponse:
    services = request.app[SERVICES]
    # Before the look-up: without a valid signature, no response tells whether an image exists.
    path = _path(request)
    expires_at = await services.signing.verify(path)
    name = path.rpartition("/")[2]
    if (named := IMAGE_NAME.fullmatch(name)) is None:
        raise _no_such_image()
    image = await services.cache.image_index.open(named["id"])
    if image.format != named["format"]:
        raise _no_such_image()
    max_age = max(0, int(expires_at - services.clock()))
    validators: dict[str, str] = {
        hdrs.ETAG: f'"{image.digest}"',
        hdrs.CACHE_CONTROL: f"private, max-age={max_age}, immutable",
    }
    headers = validators | representation_headers(image.format, name) | CROSS_ORIGIN
    # A browser may open a document, such as an SVG, only with headers that a bucket does not send.
    is_redirected = (
        services.settings.redirects_links
        and image.format not in DOCUMENTS
        and request.method == hdrs.METH_GET
        and request.headers.keys().isdisjoint(OWN_TAGS)
    )
    if is_redirected:
        seconds = min(REDIRECT_SECONDS, max(1, max_age))
        with suppress(StoreUnavailable):  # then the image may be in this worker's memory
            return await _redirect(request, image.digest, validators, seconds)
    # The bytes of the whole image are not read to send some or none of them.
    if services.cache.blobs.are_remote and (
        request.method == hdrs.METH_HEAD or not request.headers.keys().isdisjoint(PARTIAL)
    ):
        return await _send_part(request, image.digest, headers, validators)
    data = await services.cache.blobs.load(image.digest, "raw")
    if data is None:
        raise image_gone()
    # A 304 has the validators but not the representation (RFC 9110 §15.4.5).
    if is_not_modified(request, validators[hdrs.ETAG]):
        return web.Response(status=HTTPStatus.NOT_MODIFIED, headers=validators)
    return await send_image(request, data, headers)


async def _redirect(
    request: web.Request, digest: str, validators: Mapping[str, str], seconds: int
) -> web.StreamResponse:
    """Redirects to a URL that works for `seconds`. Clients repeat a `Range` there."""
    url = await request.app[SERVICES].cache.blobs.presign(digest, seconds)
    if url is None:
        raise image_gone()
    if is_not_modified(request, validators[hdrs.ETAG]):
        return web.Response(status=HTTPStatus.NOT_MODIFIED, headers=validators)
    headers = {
        hdrs.LOCATION: url,
        # The URL is a credential.
        hdrs.CACHE_CONTROL: "no-store",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    }
    return web.Response(status=HTTPStatus.FOUND, headers=headers | CROSS_ORIGIN)


async def _send_part(
    request: web.Request, digest: str, headers: Mapping[str, str], validators: Mapping[str, str]
) -> web.StreamResponse:
    """Answers `HEAD` and conditions without the bytes, and a range with no others."""
    blobs = request.app[SERVICES].cache.blobs
    size = await blobs.measure(digest)
    if size is None:
        raise image_gone()
    if is_not_modified(request, validators[hdrs.ETAG]):
        return web.Response(status=HTTPStatus.NOT_MODIFIED, headers=validators)
    part = requested_range(request, validators[hdrs.ETAG], size)
    piece: bytes | memoryview | None = b""
    if request.method != hdrs.METH_HEAD:
        piece = await (blobs.load(digest, "raw") if part is None else blobs.load_part(digest, part))
    # The object may have been replaced meanwhile: the bytes must be as many as the headers say.
    if piece is None or (piece and len(piece) != len(part or range(size))):
        raise image_gone()
    return await send_part(request, piece, part, size=size, headers=headers)


def _no_such_image() -> GatewayError:
    return GatewayError(
        "There is no image of this id and format.",
        type=INVALID_REQUEST,
        code=ErrorCode.IMAGE_NOT_FOUND,
    )


def _path(request: web.Request) -> str:
    """The path of the link, byte for byte. A query, which some clients append, is ignored."""
    target = request.raw_path.partition("?")[0]
    if target.startswith("/"):
        return target
    # A proxy may send the absolute form, with scheme and host (RFC 9112 §3.2.2).
    _, slash, rest = target.partition("://")[2].partition("/")
    return slash + rest
