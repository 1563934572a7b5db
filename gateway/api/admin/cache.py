"""/admin/cache."""

from __future__ import annotations

import difflib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final

from aiohttp import web

from gateway.access.key_records import MAX_ECHO
from gateway.api.admin.requests import _body, _json
from gateway.api.services import SERVICES
from gateway.cache.invalidation import Invalidation
from gateway.errors import InvalidRequest

# ── the cache ───────────────────────────────────────────────────────────────────────────────

_PURGES: Final[Mapping[str, Callable[[Invalidation, str], Awaitable[int]]]] = {
    "fingerprint": Invalidation.purge_fingerprint,
    "tag": Invalidation.purge_tag,
    "model": Invalidation.purge_model,
}


async def cache_stats(request: web.Request) -> web.Response:
    """`GET /admin/cache`: how much is kept, and how much may be."""
    blobs = request.app[SERVICES].blobs
    totals = await blobs.totals()
    bound_bytes = await blobs.bound_bytes()
    return _json({"images": totals.count, "bytes": totals.size_bytes, "total_bytes": bound_bytes})


async def purge(request: web.Request) -> web.Response:
    """`POST /admin/cache/purge`: empties slots; links that were given away live on."""
    invalidation = request.app[SERVICES].invalidation
    body = await _body(request)
    what, value = _only(body, known=(*_PURGES, "all"))
    if what == "all":
        if value is not True:
            raise _wrong("all", 'true: {"all": true}')
        return _json({"images": await invalidation.purge_all()})
    if not isinstance(value, str) or not value:
        raise _wrong(what, "a string")
    return _json({"images": await _PURGES[what](invalidation, value)})


async def take_down(request: web.Request) -> web.Response:
    """`POST /admin/cache/takedown`: removes an image everywhere, for good."""
    body = await _body(request)
    if unknown := next((key for key in body if key not in ("image", "prompt")), None):
        raise _unknown(unknown, ("image", "prompt"))
    image, prompt = body.get("image"), body.get("prompt")
    if not isinstance(image, str):
        raise _wrong("image", "its link, its id, or FINGERPRINT/SLOT")
    if not isinstance(prompt, bool | None):
        raise _wrong("prompt", "true or false")
    invalidation = request.app[SERVICES].invalidation
    return _json({"images": await invalidation.take_down(image, with_prompt=bool(prompt))})


def _only(body: Mapping[str, object], *, known: Sequence[str]) -> tuple[str, object]:
    """The one key of a body that names one of several things."""
    if unknown := next((key for key in body if key not in known), None):
        raise _unknown(unknown, known)
    if len(body) != 1:
        raise InvalidRequest(
            f"Name exactly one of {', '.join(known)}.", code="missing_required_parameter"
        )
    return next(iter(body.items()))


def _unknown(key: str, known: Sequence[str]) -> InvalidRequest:
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)[0]
    return InvalidRequest(
        f"Unknown parameter: '{key[:MAX_ECHO]}'. Did you mean '{near}'?",
        param=key[:MAX_ECHO],
        code="unknown_parameter",
    )


def _wrong(key: str, expected: str) -> InvalidRequest:
    return InvalidRequest(f"Invalid '{key}': expected {expected}.", param=key, code="invalid_value")
