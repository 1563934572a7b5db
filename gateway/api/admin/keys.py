"""/admin/keys."""

from __future__ import annotations

from collections.abc import Sequence

from aiohttp import web

from gateway.access.key_records import parse_spec
from gateway.api.admin.requests import _body, _json
from gateway.api.services import SERVICES
from gateway.errors import InvalidRequest


async def create_key(request: web.Request) -> web.Response:
    """`POST /admin/keys`: the only answer that ever shows the key."""
    spec = parse_spec(await _body(request))
    _check_models(request, spec.models)
    record, secret = await request.app[SERVICES].keys.create(spec)
    return _json({**record.public(), "key": secret}, status=201)


async def list_keys(request: web.Request) -> web.Response:
    """`GET /admin/keys`: all keys, oldest first, revoked ones among them."""
    records = await request.app[SERVICES].keys.list_keys()
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


def _check_models(request: web.Request, models: Sequence[object] | None) -> None:
    known = request.app[SERVICES].policy().catalog.models
    for model in models or ():
        if not isinstance(model, str) or model not in known:
            raise InvalidRequest(
                f"The model '{str(model)[:200]}' does not exist. Known models: {', '.join(known)}.",
                param="models",
                code="invalid_value",
            )
