"""Rehosted pictures: whoever has a signed link gets the picture, without a key.

A picture never changes under its link, so all that HTTP knows about not sending bytes again holds
here (RFC 9110 §13 and §14): a strong ETag, conditions, ranges. Whether a link is ours is
`access/signing`; which picture it shows, and whether it is still there, is `cache/gallery`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from http import HTTPStatus
from typing import Final

from aiohttp import hdrs, web

from gateway.api.middleware import PASSAGE
from gateway.api.sending import send_body
from gateway.api.services import SERVICES
from gateway.cache.gallery import OpenPicture
from gateway.errors import INVALID_REQUEST, GatewayError

SAFE: Final = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; sandbox",
    "Cross-Origin-Resource-Policy": "cross-origin",
}
"""Any page may show a picture; opened by itself it can do nothing, whatever its bytes are."""

_TAG: Final = re.compile(r'(?:W/)?"[^"]*"')
_RANGE: Final = re.compile(r"bytes=[ \t]*([0-9]{0,4000})-([0-9]{0,4000})[ \t]*", re.IGNORECASE)
"""One range; numbers of more digits Python does not read."""


async def show_picture(request: web.Request) -> web.StreamResponse:
    """Answers GET and HEAD of a signed link; a key beside it is ignored.

    No error is stored by anyone: a link that is refused here may open at the next worker.
    """
    try:
        return await _show(request)
    except GatewayError:
        request[PASSAGE].headers[hdrs.CACHE_CONTROL] = "no-store"
        raise


async def _show(request: web.Request) -> web.StreamResponse:
    services = request.app[SERVICES]
    expires_at = await services.signing.verify(_link(request))
    picture_id, _, extension = request.match_info["name"].partition(".")
    picture = await services.gallery.open(picture_id)
    if picture.format != extension:
        raise _not_found()
    life_seconds = max(0, int(expires_at - services.clock()))
    validators = {
        hdrs.ETAG: f'"{picture.digest}"',
        hdrs.CACHE_CONTROL: f"private, max-age={life_seconds}, immutable",
    }
    if _is_known(request, validators[hdrs.ETAG]):
        return web.Response(status=HTTPStatus.NOT_MODIFIED, headers=validators)
    about = {
        hdrs.CONTENT_TYPE: f"image/{extension}",
        hdrs.CONTENT_DISPOSITION: f'inline; filename="img-{picture_id}.{extension}"',
        hdrs.ACCEPT_RANGES: "bytes",
    }
    return await _send(request, picture, validators | about | SAFE)


def _link(request: web.Request) -> str:
    """Path and query byte for byte as they came; a proxy may put scheme and host before them."""
    target = request.raw_path
    if target.startswith("/"):
        return target
    _, slash, rest = target.partition("://")[2].partition("/")
    return slash + rest


async def _send(
    request: web.Request, picture: OpenPicture, headers: Mapping[str, str]
) -> web.StreamResponse:
    """The picture or the asked part of it; to HEAD what GET without a range would say of it."""
    size = len(picture.data)
    part = _asked_part(request, headers[hdrs.ETAG], size)
    response = web.StreamResponse(headers=headers)
    if part is not None:
        response.set_status(HTTPStatus.PARTIAL_CONTENT)
        response.headers[hdrs.CONTENT_RANGE] = f"bytes {part.start}-{part.stop - 1}/{size}"
    shown = part or range(size)
    response.content_length = len(shown)
    view = memoryview(picture.data)[shown.start : shown.stop]
    return await send_body(request, response, [view])


# ── conditions, in the order of RFC 9110 §13.2.2; those about dates do not hold: there is none ──


def _is_known(request: web.Request, etag: str) -> bool:
    """Whether the client has these bytes. Raises 412 when it asked for others."""
    wanted = request.headers.getall(hdrs.IF_MATCH, [])
    if wanted and not _names(wanted, etag, weakly=False):
        raise _precondition_failed()
    return _names(request.headers.getall(hdrs.IF_NONE_MATCH, []), etag, weakly=True)


def _names(fields: list[str], etag: str, *, weakly: bool) -> bool:
    """Whether a list of entity tags, or `*`, names this one (strong) tag."""
    tags = [tag for field in fields for tag in _TAG.findall(field)]
    is_any = [field.strip() for field in fields] == ["*"]
    return is_any or etag in tags or (weakly and f"W/{etag}" in tags)


def _asked_part(request: web.Request, etag: str, size: int) -> range | None:
    """The bytes that `Range` asks for, None for all. Raises 416 when there are no such bytes."""
    asked = request.headers.getall(hdrs.RANGE, [])
    if request.method != hdrs.METH_GET or len(asked) != 1:
        return None
    if request.headers.get(hdrs.IF_RANGE, etag).strip() != etag:
        return None  # the rest of another picture would not fit
    part = parse_range(asked[0], size)
    if part is not None and not part:
        raise _unsatisfiable(size)
    return part


def parse_range(field: str, size: int) -> range | None:
    """The part of `size` bytes that a `Range` field names; an empty one when there is none.

    None for what may be ignored (RFC 9110 §14.2): several ranges, other units, malformed ones.
    """
    found = _RANGE.fullmatch(field.strip())
    if found is None or found.groups() == ("", ""):
        return None
    first, last = (int(digits) if digits else None for digits in found.groups())
    if first is None:
        return range(max(0, size - (last or 0)), size)
    if last is not None and last < first:
        return None
    return range(first, size if last is None else min(last + 1, size))


# ── refusals ────────────────────────────────────────────────────────────────────────────────


def _not_found() -> GatewayError:
    return GatewayError(
        "There is no picture of this id and format.",
        status=HTTPStatus.NOT_FOUND,
        type=INVALID_REQUEST,
        code="picture_not_found",
    )


def _precondition_failed() -> GatewayError:
    return GatewayError(
        "The picture is none of those that 'If-Match' names.",
        status=HTTPStatus.PRECONDITION_FAILED,
        type=INVALID_REQUEST,
        code="precondition_failed",
    )


def _unsatisfiable(size: int) -> GatewayError:
    return GatewayError(
        f"The picture has {size} bytes; the range asks for others.",
        status=HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE,
        type=INVALID_REQUEST,
        code="range_not_satisfiable",
        headers={hdrs.CONTENT_RANGE: f"bytes */{size}"},
    )
