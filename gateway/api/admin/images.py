"""`/admin/images`: the images of the cache, their thumbnails and their bytes.

The holder of a key gets the same under a session of the dashboard, of the images that this key has
bought. Others are unknown there.
"""

from __future__ import annotations

from typing import Any, Final

from aiohttp import hdrs, web

from gateway.api.admin.requests import check_query, invalid_value, read_limit, read_time
from gateway.api.auth import KEY
from gateway.api.http.images import representation_headers, send_image
from gateway.api.http.json import json_response
from gateway.api.http.ranges import is_not_modified
from gateway.api.origin import public_url
from gateway.api.services import SERVICES
from gateway.cache.image_search import FoundImage, SearchTerms
from gateway.cache.indexed_image import MEMBER
from gateway.errors import INVALID_REQUEST, ErrorCode, GatewayError
from gateway.imagefile.check import DOCUMENTS

DEFAULT_LISTED: Final = 60
MAX_LISTED: Final = 100
"""The largest `limit` of a list."""

MAX_LISTED_PROMPT: Final = 500
"""Characters of a prompt in a list. The image's own path has all of them."""

_FILTERS: Final = ("model", "size", "tag")
_PAGING: Final = ("limit", "after", "since", "until")

_CACHE_CONTROL: Final = "private, no-cache"
"""A browser asks each time, so it shows nothing that was taken down; mostly the answer is a 304."""


def owner_of(request: web.Request) -> str | None:
    """The id of the key whose images alone the request may see; None for an operator."""
    return request[KEY].principal.key_id if KEY in request else None


async def list_images(request: web.Request) -> web.StreamResponse:
    """`GET /admin/images`: images whose bytes are stored, newest first."""
    owner, now = owner_of(request), request.app[SERVICES].clock()
    filters = _FILTERS if owner is not None else (*_FILTERS, "key", "key_id")
    check_query(request, (*filters, *_PAGING))
    after = request.query.get("after", "")
    if after and MEMBER.fullmatch(after) is None:
        raise invalid_value("after", "the 'after' of the previous page")
    terms = SearchTerms(
        since=read_time(request, "since", now=now),
        until=read_time(request, "until", now=now),
        **{"key_id": owner, **{n: request.query[n] for n in filters if request.query.get(n)}},
    )
    limit = read_limit(request, MAX_LISTED) or DEFAULT_LISTED
    page = await request.app[SERVICES].cache.image_search.search(terms, limit=limit, after=after)
    data = [await _public(request, image, max_prompt=MAX_LISTED_PROMPT) for image in page.images]
    return json_response({"data": data, "after": page.after})


async def show_image(request: web.Request) -> web.StreamResponse:
    """`GET /admin/images/{id}`: one image."""
    return json_response(await _public(request, await _find(request)))


async def show_thumbnail(request: web.Request) -> web.StreamResponse:
    """`GET /admin/images/{id}/thumbnail`: a WebP of at most 320 pixels."""
    image = await _find(request)
    etag = f'"{image.indexed.digest}-thumbnail"'
    if is_not_modified(request, etag):
        return _not_modified(etag)
    thumbnails = request.app[SERVICES].cache.thumbnails
    thumbnail = await thumbnails.load(image.indexed.digest, image.indexed.format)
    if thumbnail is None:
        raise _gone()
    if not thumbnail:
        raise GatewayError(
            f"There is no thumbnail of this {image.indexed.format} image: {_why(image)}.",
            type=INVALID_REQUEST,
            code=ErrorCode.NO_THUMBNAIL,
        )
    name = f"img-{image.id}-thumbnail.webp"
    return await send_image(request, thumbnail, _headers(etag, "webp", name))


async def send_file(request: web.Request) -> web.StreamResponse:
    """`GET /admin/images/{id}/file`: the image, byte for byte; `?download` names a file for it."""
    image = await _find(request)
    etag = f'"{image.indexed.digest}"'
    if is_not_modified(request, etag):
        return _not_modified(etag)
    data = await request.app[SERVICES].cache.blobs.peek(image.indexed.digest)
    if data is None:
        raise _gone()
    is_download = "download" in request.query
    name = f"img-{image.id}.{image.indexed.format}"
    headers = _headers(etag, image.indexed.format, name, is_download=is_download)
    return await send_image(request, data, headers)


def _why(image: FoundImage) -> str:
    is_document = image.indexed.format in DOCUMENTS
    return "the gateway draws no documents" if is_document else "it cannot be decoded"


async def _find(request: web.Request) -> FoundImage:
    """The image of the path. Raises 404 for an unknown one and for another owner's."""
    cache, image_id = request.app[SERVICES].cache, request.match_info["id"]
    indexed = await cache.image_index.find(image_id)
    if indexed is None or owner_of(request) not in (None, indexed.key_id):
        raise GatewayError(
            "There is no image with this id.",
            type=INVALID_REQUEST,
            code=ErrorCode.IMAGE_NOT_FOUND,
        )
    image = await cache.image_search.describe(image_id, indexed)
    if image is None:
        raise _gone()
    return image


async def _public(
    request: web.Request, image: FoundImage, *, max_prompt: int | None = None
) -> dict[str, Any]:
    """The image's JSON object."""
    indexed, services = image.indexed, request.app[SERVICES]
    # Most hits are those of other keys: when they ask for it is not the buyer's business.
    hits = image.hits if owner_of(request) is None else None
    is_shown = services.settings.stores_prompts and indexed.prompt is not None
    path = f"/images/img-{image.id}.{indexed.format}"
    return {
        "id": image.id,
        "created_at": indexed.created_at,
        "model": indexed.model,
        "size": indexed.size,
        "quality": indexed.quality,
        "format": indexed.format,
        "bytes": indexed.size_bytes,
        "width": indexed.width,
        "height": indexed.height,
        "key": indexed.key or None,
        "key_id": indexed.key_id or None,
        "team": indexed.team,
        "tags": list(indexed.tags),
        "cost_usd": 0.0 if indexed.is_transcoded else indexed.cost_micros / 1e6,
        "hits": None if hits is None else hits.total,
        "saved_usd": None if hits is None else hits.total * indexed.cost_micros / 1e6,
        "last_hit_at": None if hits is None else hits.last_at or None,
        "fingerprint": indexed.fingerprint,
        "slot": image.slot,
        "expires_at": image.expires_at,
        "state": image.state,
        "transcoded": indexed.is_transcoded,
        "active": list(indexed.active),
        "prompt": (indexed.prompt or "")[:max_prompt] if is_shown else None,
        "revised_prompt": (indexed.revised_prompt or "")[:max_prompt] or None if is_shown else None,
        "url": public_url(request) + await services.signing.sign(path),
    }


def _headers(etag: str, format: str, name: str, *, is_download: bool = False) -> dict[str, str]:
    return {
        hdrs.ETAG: etag,
        hdrs.CACHE_CONTROL: _CACHE_CONTROL,
        "Cross-Origin-Resource-Policy": "same-origin",
        **representation_headers(format, name, is_download=is_download),
    }


def _not_modified(etag: str) -> web.StreamResponse:
    return web.Response(status=304, headers={hdrs.ETAG: etag, hdrs.CACHE_CONTROL: _CACHE_CONTROL})


def _gone() -> GatewayError:
    return GatewayError(
        "This image was evicted or taken down.",
        type=INVALID_REQUEST,
        code=ErrorCode.IMAGE_GONE,
    )
