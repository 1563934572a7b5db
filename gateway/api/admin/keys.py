"""`/admin/keys`: creates, lists, changes and revokes gateway keys."""

from __future__ import annotations

from typing import Final

import orjson
from aiohttp import web

from gateway.access.key_records import parse_overlap, parse_spec
from gateway.api.admin.requests import (
    check_models,
    invalid_value,
    read_actor,
    read_limit,
    read_object,
    read_parameters,
)
from gateway.api.http.json import JSON, json_response
from gateway.api.services import SERVICES

MAX_LISTED: Final = 1000
"""The largest `limit` of a list."""


async def create_key(request: web.Request) -> web.Response:
    """`POST /admin/keys`: the only response that contains the secret."""
    spec = parse_spec(await read_object(request))
    check_models(request, spec.models or ())
    record, secret = await request.app[SERVICES].keys.create(spec, actor=read_actor(request))
    return json_response({**record.public(), "key": secret}, status=201)


async def list_keys(request: web.Request) -> web.Response:
    """`GET /admin/keys`: all keys, oldest first, with those revoked in the last 90 days.

    `limit` and `after` (a key's id) ask for a part of the list.
    """
    limit, after = read_limit(request, MAX_LISTED), request.query.get("after")
    # One by one: orjson keeps the event loop from running while it encodes.
    listed = await request.app[SERVICES].keys.map_keys(lambda r: (r.id, orjson.dumps(r.public())))
    if after is not None:
        position = next((i for i, (key_id, _) in enumerate(listed) if key_id == after), None)
        if position is None:
            raise invalid_value("after", "the id of a key in the list")
        listed = listed[position + 1 :]
    uses = await request.app[SERVICES].keys.uses.read([key_id for key_id, _ in listed[:limit]])
    data = b",".join(_with_use(encoded, uses.get(key_id)) for key_id, encoded in listed[:limit])
    has_more = b"true" if limit is not None and len(listed) > limit else b"false"
    return web.Response(body=b'{"data":[%b],"has_more":%b}' % (data, has_more), content_type=JSON)


def _with_use(encoded: bytes, last_used_at: int | None) -> bytes:
    """A key's JSON object with the time of its last use."""
    if last_used_at is None:
        return encoded
    return b'%b,"last_used_at":%d}' % (encoded[:-1], last_used_at)


async def change_key(request: web.Request) -> web.Response:
    """`PATCH /admin/keys/{id}`: merges the fields; `null` removes one. Holds for new requests."""
    fields = await read_object(request)
    models = fields.get("models")
    if isinstance(models, list):
        check_models(request, models)
    record = await request.app[SERVICES].keys.change(
        request.match_info["id"], fields, actor=read_actor(request)
    )
    return json_response(record.public())


async def rotate_key(request: web.Request) -> web.Response:
    """`POST /admin/keys/{id}/rotate`: a new secret. The former one works for `overlap`, if set."""
    # Without a body there is no overlap.
    parameters = await read_parameters(request, ("overlap",)) if request.body_exists else {}
    overlap = parameters.get("overlap")
    record, secret = await request.app[SERVICES].keys.rotate(
        request.match_info["id"],
        overlap_seconds=0 if overlap is None else parse_overlap(overlap),
        actor=read_actor(request),
    )
    return json_response({**record.public(), "key": secret}, status=201)


async def revoke_key(request: web.Request) -> web.Response:
    """`DELETE /admin/keys/{id}`: the key stops working, and its name is free."""
    keys = request.app[SERVICES].keys
    await keys.revoke(request.match_info["id"], actor=read_actor(request))
    return web.Response(status=204)
