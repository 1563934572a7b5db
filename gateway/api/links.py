"""`GET` and `HEAD` of signed links: `docs/reference/cache.md#links`."""

from __future__ import annotations

from http import HTTPStatus
from typing import Final

from aiohttp import hdrs, web

from gateway.api.exchange import EXCHANGE
from gateway.api.http.images import representation_headers, send_image
from gateway.api.http.ranges import is_not_modified
from gateway.api.services import SERVICES
from gateway.cache.image_index import IMAGE_NAME
from gateway.errors import INVALID_REQUEST, ErrorCode, GatewayError

CROSS_ORIGIN: Final = {"Cross-Origin-Resource-Policy": "cross-origin"}
"""Any page may show the image of a link."""


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
    validators = {
        hdrs.ETAG: f'"{image.digest}"',
        hdrs.CACHE_CONTROL: f"private, max-age={max_age}, immutable",
    }
    # A 304 has the validators but not the representation (RFC 9110 §15.4.5).
    if is_not_modified(request, validators[hdrs.ETAG]):
        return web.Response(status=HTTPStatus.NOT_MODIFIED, headers=validators)
    headers = validators | representation_headers(image.format, name) | CROSS_ORIGIN
    return await send_image(request, image.data, headers)


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
