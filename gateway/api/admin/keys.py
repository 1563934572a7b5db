"""`/admin/keys`: creates, lists, changes and revokes gateway keys."""

from __future__ import annotations

from collections.abc import Iterable

from aiohttp import web

from gateway.access.key_records import parse_spec
from gateway.api.admin.requests import read_object
from gateway.api.http.json import json_response
from gateway.api.services import SERVICES
from gateway.errors import MAX_ECHO, ErrorCode, InvalidRequest


async def create_key(request: web.Request) -> web.Response:
    """`POST /admin/keys`: the only response that contains the secret."""
    spec = parse_spec(await read_object(request))
    _check_models(request, spec.models or ())
    record, secret = await request.app[SERVICES].keys.create(spec)
    return json_response({**record.public(), "key": secret}, status=201)


async def list_keys(request: web.Request) -> web.Response:
    """`GET /admin/keys`: all keys, oldest first, with the revoked ones."""
    records = await request.app[SERVICES].keys.list_keys()
    return json_response({"data": [record.public() for record in records]})


async def change_key(request: web.Request) -> web.Response:
    """`PATCH /admin/keys/{id}`: merges the fields; `null` removes one. Holds for new requests."""
    fields = await read_object(request)
    models = fields.get("models")
    if isinstance(models, list):
        _check_models(request, models)
    record = await request.app[SERVICES].keys.change(request.match_info["id"], fields)
    return json_response(record.public())


async def revoke_key(request: web.Request) -> web.Response:
    """`DELETE /admin/keys/{id}`: the key stops working, and its name is free."""
    await request.app[SERVICES].keys.revoke(request.match_info["id"])
    return web.Response(status=204)


def _check_models(request: web.Request, models: Iterable[object]) -> None:
    known = request.app[SERVICES].policy().catalog.models
    for model in models:
        if not isinstance(model, str) or model not in known:
            raise InvalidRequest(
                f"The model '{str(model)[:MAX_ECHO]}' does not exist. "
                f"Known models: {', '.join(known)}.",
                param="models",
                code=ErrorCode.INVALID_VALUE,
            )
