"""Rehosted images by their signed links."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Final

from aiohttp import hdrs, web

from gateway.api.http.ranges import _asked_part, _is_known
from gateway.api.http.sending import send_body
from gateway.api.middleware import EXCHANGE
from gateway.api.services import SERVICES
from gateway.cache.image_index import ServedImage
from gateway.errors import INVALID_REQUEST, GatewayError

SAFE: Final = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; sandbox",
    "Cross-Origin-Resource-Policy": "cross-origin",
}
"""Any page may show an image; opened by itself it can do nothing, whatever its bytes are."""


async def show_image(request: web.Request) -> web.StreamResponse:
    """Answers GET and HEAD of a signed link; a key beside it is ignored.

    No error is stored by anyone: a link that is refused here may open at the next worker.
    """
    try:
        return await _show(request)
    except GatewayError:
        request[EXCHANGE].headers[hdrs.CACHE_CONTROL] = "no-store"
        raise


async def _show(request: web.Request) -> web.StreamResponse:
    services = request.app[SERVICES]
    expires_at = await services.signing.verify(_link(request))
    image_id, _, extension = request.match_info["name"].partition(".")
    image = await services.image_index.open(image_id)
    if image.format != extension:
        raise _not_found()
    life_seconds = max(0, int(expires_at - services.clock()))
    validators = {
        hdrs.ETAG: f'"{image.digest}"',
        hdrs.CACHE_CONTROL: f"private, max-age={life_seconds}, immutable",
    }
    if _is_known(request, validators[hdrs.ETAG]):
        return web.Response(status=HTTPStatus.NOT_MODIFIED, headers=validators)
    about = {
        hdrs.CONTENT_TYPE: f"image/{extension}",
        hdrs.CONTENT_DISPOSITION: f'inline; filename="img-{image_id}.{extension}"',
        hdrs.ACCEPT_RANGES: "bytes",
    }
    return await _send(request, image, validators | about | SAFE)


def _link(request: web.Request) -> str:
    """Path and query byte for byte as they came; a proxy may put scheme and host before them."""
    target = request.raw_path
    if target.startswith("/"):
        return target
    _, slash, rest = target.partition("://")[2].partition("/")
    return slash + rest


async def _send(
    request: web.Request, image: ServedImage, headers: Mapping[str, str]
) -> web.StreamResponse:
    """The image or the asked part of it; to HEAD what GET without a range would say of it."""
    size = len(image.data)
    part = _asked_part(request, headers[hdrs.ETAG], size)
    response = web.StreamResponse(headers=headers)
    if part is not None:
        response.set_status(HTTPStatus.PARTIAL_CONTENT)
        response.headers[hdrs.CONTENT_RANGE] = f"bytes {part.start}-{part.stop - 1}/{size}"
    shown = part or range(size)
    response.content_length = len(shown)
    view = memoryview(image.data)[shown.start : shown.stop]
    return await send_body(request, response, [view])


# ── refusals ────────────────────────────────────────────────────────────────────────────────


def _not_found() -> GatewayError:
    return GatewayError(
        "There is no image of this id and format.",
        status=HTTPStatus.NOT_FOUND,
        type=INVALID_REQUEST,
        code="image_not_found",
    )
