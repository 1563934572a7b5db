"""/admin/cache."""

from __future__ import annotations

import difflib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final

from aiohttp import web

from gateway.access.key_records import MAX_ECHO
from gateway.api.admin.requests import _body, _json
from gateway.api.services import SERVICES
from gateway.cache.invalidation import Removal
from gateway.errors import InvalidRequest

# ── the cache ───────────────────────────────────────────────────────────────────────────────

_PURGES: Final[Mapping[str, Callable[[Removal, str], Awaitable[int]]]] = {
    "fingerprint": Removal.purge_fingerprint,
    "tag": Removal.purge_tag,
    "model": Removal.purge_model,
}


async def cache_stats(request: web.Request) -> web.Response:
    """`GET /admin/cache`: how much is kept, and how much may be."""
    blobs = request.app[SERVICES].blobs
    shelf = await blobs.shelf()
    most = await blobs.total_bytes()
    return _json({"pictures": shelf.count, "bytes": shelf.size_bytes, "total_bytes": most})


async def purge(request: web.Request) -> web.Response:
    """`POST /admin/cache/purge`: empties slots; links that were given away live on."""
    removal = request.app[SERVICES].removal
    body = await _body(request)
    what, value = _only(body, known=(*_PURGES, "all"))
    if what == "all":
        if value is not True:
            raise _wrong("all", 'true: {"all": true}')
        return _json({"pictures": await removal.purge_all()})
    if not isinstance(value, str) or not value:
        raise _wrong(what, "a string")
    return _json({"pictures": await _PURGES[what](removal, value)})


async def take_down(request: web.Request) -> web.Response:
    """`POST /admin/cache/takedown`: removes a picture everywhere, for good."""
    body = await _body(request)
    if unknown := next((key for key in body if key not in ("picture", "prompt")), None):
        raise _unknown(unknown, ("picture", "prompt"))
    picture, prompt = body.get("picture"), body.get("prompt")
    if not isinstance(picture, str):
        raise _wrong("picture", "its link, its id, or FINGERPRINT/SLOT")
    if not isinstance(prompt, bool | None):
        raise _wrong("prompt", "true or false")
    removal = request.app[SERVICES].removal
    return _json({"pictures": await removal.take_down(picture, with_prompt=bool(prompt))})


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
