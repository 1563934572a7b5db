"""`/admin/cache`: statistics, purge and take-down."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from aiohttp import web

from gateway.api.admin.requests import invalid_value, read_actor, read_parameters
from gateway.api.http.json import json_response
from gateway.api.services import SERVICES
from gateway.cache.invalidation import Invalidation, shown_image
from gateway.cache.purges import Purge
from gateway.errors import ErrorCode, InvalidRequest

_PURGES: Final[Mapping[str, Callable[[Invalidation, str], Awaitable[Purge]]]] = {
    "fingerprint": Invalidation.purge_fingerprint,
    "tag": Invalidation.purge_tag,
    "model": Invalidation.purge_model,
}


async def cache_stats(request: web.Request) -> web.StreamResponse:
    """`GET /admin/cache`: the number of images, their bytes, and the bound."""
    blobs = request.app[SERVICES].cache.blobs
    totals = await blobs.totals()
    bound_bytes = await blobs.bound_bytes()
    return json_response(
        {"images": totals.count, "bytes": totals.size_bytes, "total_bytes": bound_bytes}
    )


async def purge(request: web.Request) -> web.StreamResponse:
    """`POST /admin/cache/purge`: empties slots. Links that were given to clients keep working."""
    invalidation = request.app[SERVICES].cache.invalidation
    known = (*_PURGES, "all")
    parameters = await read_parameters(request, known)
    if len(parameters) != 1:
        raise InvalidRequest(
            f"Name exactly one of {', '.join(known)}.", code=ErrorCode.MISSING_REQUIRED_PARAMETER
        )
    ((name, value),) = parameters.items()
    if name == "all":
        if value is not True:
            raise invalid_value("all", 'true: {"all": true}')
        purged = await invalidation.purge_all()
    elif not isinstance(value, str) or not value:
        raise invalid_value(name, "a string")
    else:
        purged = await _PURGES[name](invalidation, value)
    purged_object = name if name == "all" else f"{name}:{value}"
    return await _audited(request, "cache.purge", purged_object, purged)


async def take_down(request: web.Request) -> web.StreamResponse:
    """`POST /admin/cache/takedown`: removes an image everywhere, and refuses its bytes from now."""
    parameters = await read_parameters(request, ("image", "prompt"))
    image, prompt = parameters.get("image"), parameters.get("prompt")
    if not isinstance(image, str):
        raise invalid_value("image", "its link, its id, or FINGERPRINT/SLOT")
    if not isinstance(prompt, bool | None):
        raise invalid_value("prompt", "true or false")
    invalidation = request.app[SERVICES].cache.invalidation
    taken_down = await invalidation.take_down(image, with_prompt=bool(prompt))
    taken_object = f"image:{shown_image(image)}"
    return await _audited(request, "cache.takedown", taken_object, taken_down, prompt=bool(prompt))


async def purge_progress(request: web.Request) -> web.StreamResponse:
    """`GET /admin/cache/purges/{id}`: how far a purge of the last days is."""
    purge = await request.app[SERVICES].cache.purges.find(request.match_info["id"])
    return json_response(purge.public())


async def _audited(
    request: web.Request, action: str, named: str, purge: Purge, **more: bool
) -> web.StreamResponse:
    """The response to a purge or take-down, which is in the audit now."""
    # Afterwards: what failed is no event. Both can be repeated if the audit cannot be written.
    after = {"purge": purge.id, "images": purge.images, **more}
    await request.app[SERVICES].audit.note(read_actor(request), action, named, after)
    return _progress(purge)


def _progress(purge: Purge) -> web.StreamResponse:
    """200, or 202 while slots are still being emptied. It holds already."""
    return json_response(purge.public(), status=200 if purge.done else 202)
