"""`/admin/keys`: creates, lists, changes and revokes gateway keys."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

import orjson
from aiohttp import web

from gateway.access.key_records import KeyRecord, parse_overlap, parse_spec
from gateway.api.admin.requests import (
    check_models,
    check_query,
    invalid_value,
    read_actor,
    read_limit,
    read_object,
    read_parameters,
)
from gateway.api.http.json import JSON, json_response
from gateway.api.limit_rows import used_rows
from gateway.api.services import SERVICES, Services
from gateway.billing.reports import SLICE_ROWS

MAX_LISTED: Final = 1000
"""The largest `limit` of a list."""
STATES: Final = ("active", "expired", "revoked", "all")


async def create_key(request: web.Request) -> web.StreamResponse:
    """`POST /admin/keys`: the only response that contains the secret."""
    spec = parse_spec(await read_object(request))
    check_models(request, spec.models or ())
    record, secret = await request.app[SERVICES].keys.create(spec, actor=read_actor(request))
    return json_response({**record.public(), "key": secret}, status=201)


async def list_keys(request: web.Request) -> web.StreamResponse:
    """`GET /admin/keys`: all keys, oldest first, with those revoked in the last 90 days.

    `limit` and `after` (a key's id) ask for a part of the list, `search` and `state` for some of
    the keys. `with=limits` adds what they have used of their limits.
    """
    check_query(request, ("limit", "after", "search", "state", "with"))
    limit, after = read_limit(request, MAX_LISTED), request.query.get("after")
    wanted, shows_limits = _read_filter(request), with_limits(request)
    services = request.app[SERVICES]

    def convert(record: KeyRecord) -> _Listed:
        if not wanted(record):
            return _Listed(record.id, None, None)
        # One by one: orjson keeps the event loop from running while it encodes.
        return _Listed(record.id, orjson.dumps(record.public()), record if shows_limits else None)

    listed = await services.keys.map_keys(convert)
    if after is not None:
        position = next((i for i, key in enumerate(listed) if key.id == after), None)
        if position is None:
            raise invalid_value("after", "the id of a key in the list")
        listed = listed[position + 1 :]
    found = [key for key in listed if key.encoded is not None]
    page = found[:limit]
    rows = await _rows(services, page)
    has_more = b"true" if len(found) > len(page) else b"false"
    body = b'{"data":[%b],"has_more":%b}' % (b",".join(rows), has_more)
    return web.Response(body=body, content_type=JSON)


async def show_key(request: web.Request) -> web.StreamResponse:
    """`GET /admin/keys/{id}`: one key, with what it has used of its limits."""
    services = request.app[SERVICES]
    record = await services.keys.find(request.match_info["id"])
    (row,) = await _rows(services, [_Listed(record.id, orjson.dumps(record.public()), record)])
    return web.Response(body=row, content_type=JSON)


class _Listed(NamedTuple):
    """A key of the list."""

    id: str
    encoded: bytes | None
    """Its JSON object; None if it is not asked for."""
    record: KeyRecord | None
    """None if its limits are not asked for."""


def with_limits(request: web.Request) -> bool:
    """Whether the query asks for what is used of the limits."""
    given = request.query.get("with")
    if given not in (None, "limits"):
        raise invalid_value("with", "'limits'")
    return given is not None


def _read_filter(request: web.Request) -> Callable[[KeyRecord], bool]:
    state, text = request.query.get("state", "all"), request.query.get("search", "").casefold()
    if state not in STATES:
        raise invalid_value("state", f"one of {', '.join(STATES)}")
    now = request.app[SERVICES].clock()

    def is_wanted(record: KeyRecord) -> bool:
        if state != "all" and state != _state_of(record, now):
            return False
        return not text or any(text in word.casefold() for word in _words(record))

    return is_wanted


def _state_of(record: KeyRecord, now: float) -> str:
    if record.revoked_at is not None:
        return "revoked"
    return "active" if record.is_active(now) else "expired"


def _words(record: KeyRecord) -> Iterator[str]:
    """What a search looks in."""
    yield from (record.name, record.id, record.prefix, record.team or "")
    for name, value in (record.labels or {}).items():
        yield from (name, value)


async def _rows(services: Services, page: Sequence[_Listed]) -> list[bytes]:
    """The JSON objects of keys, with the time of their last use, and what they have used."""
    last_used = await services.keys.uses.read([key.id for key in page])
    records = [key.record for key in page if key.record is not None]
    used: dict[str, bytes] = {}
    if records:
        subjects = await services.limit_changes.of_keys(records)
        uses, now = await services.read_uses(list(subjects.values())), services.clock()
        for index, (key_id, subject) in enumerate(subjects.items(), start=1):
            used[key_id] = orjson.dumps(used_rows("key", uses[subject.name], now))
            if index % SLICE_ROWS == 0:
                await asyncio.sleep(0)
    return [
        _with_more(key.encoded or b"{}", last_used.get(key.id), used.get(key.id)) for key in page
    ]


def _with_more(encoded: bytes, last_used_at: int | None, used: bytes | None) -> bytes:
    more = b"" if last_used_at is None else b',"last_used_at":%d' % last_used_at
    more += b"" if used is None else b',"used":%b' % used
    return b"%b%b}" % (encoded[:-1], more)


async def change_key(request: web.Request) -> web.StreamResponse:
    """`PATCH /admin/keys/{id}`: merges the fields; `null` removes one. Holds for new requests."""
    fields = await read_object(request)
    models = fields.get("models")
    if isinstance(models, list):
        check_models(request, models)
    record = await request.app[SERVICES].keys.change(
        request.match_info["id"], fields, actor=read_actor(request)
    )
    return json_response(record.public())


async def rotate_key(request: web.Request) -> web.StreamResponse:
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


async def revoke_key(request: web.Request) -> web.StreamResponse:
    """`DELETE /admin/keys/{id}`: the key stops working, and its name is free."""
    keys = request.app[SERVICES].keys
    await keys.revoke(request.match_info["id"], actor=read_actor(request))
    return web.Response(status=204)
