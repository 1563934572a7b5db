"""The admin API: keys, the cache, signing keys. What command line and dashboard do, as JSON."""

from __future__ import annotations

import difflib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final

import orjson
from aiohttp import hdrs, web

from gateway.access.keys import MAX_ECHO, parse_spec
from gateway.api.openai import read_body
from gateway.api.services import SERVICES
from gateway.cache.removal import Removal
from gateway.errors import InvalidRequest
from gateway.request.body import parse_body


async def create_key(request: web.Request) -> web.Response:
    """`POST /admin/keys`: the only answer that ever shows the key."""
    spec = parse_spec(await _body(request))
    _check_models(request, spec.models)
    record, secret = await request.app[SERVICES].keys.create(spec)
    return _json({**record.public(), "key": secret}, status=201)


async def list_keys(request: web.Request) -> web.Response:
    """`GET /admin/keys`: all keys, oldest first, revoked ones among them."""
    records = await request.app[SERVICES].keys.everyone()
    return _json({"data": [record.public() for record in records]})


async def change_key(request: web.Request) -> web.Response:
    """`PATCH /admin/keys/{id}`: merges; `null` lifts; holds from the next request on."""
    fields = await _body(request)
    models = fields.get("models")
    if isinstance(models, list):
        _check_models(request, models)
    record = await request.app[SERVICES].keys.change(request.match_info["id"], fields)
    return _json(record.public())


async def revoke_key(request: web.Request) -> web.Response:
    """`DELETE /admin/keys/{id}`: the key opens nothing any more, its name is free."""
    await request.app[SERVICES].keys.revoke(request.match_info["id"])
    return web.Response(status=204)


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


async def rotate_signing_key(request: web.Request) -> web.Response:
    """`POST /admin/signing-keys/rotate`: a new key signs; links of the old ones go on working."""
    kid = await request.app[SERVICES].signing.rotate()
    return _json({"kid": kid}, status=201)


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


# ── bodies ──────────────────────────────────────────────────────────────────────────────────


async def _body(request: web.Request) -> dict[str, object]:
    return parse_body(await read_body(request), request.headers.get(hdrs.CONTENT_TYPE))


def _check_models(request: web.Request, models: Sequence[object] | None) -> None:
    known = request.app[SERVICES].policy().catalog.models
    for model in models or ():
        if not isinstance(model, str) or model not in known:
            raise InvalidRequest(
                f"The model '{str(model)[:200]}' does not exist. Known models: {', '.join(known)}.",
                param="models",
                code="invalid_value",
            )


def _json(data: object, *, status: int = 200) -> web.Response:
    return web.Response(body=orjson.dumps(data), content_type="application/json", status=status)
