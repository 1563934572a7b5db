"""The admin API: keys today. What the command line and a dashboard do, as JSON."""

from __future__ import annotations

from collections.abc import Sequence

import orjson
from aiohttp import hdrs, web

from gateway.access.keys import parse_spec
from gateway.api.openai import read_body
from gateway.api.services import SERVICES
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
