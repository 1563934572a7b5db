"""`/admin/limits`: shows, sets and raises the limits of a key, a team or everyone."""

from __future__ import annotations

from typing import Final

from aiohttp import web

from gateway.access.limit_changes import ScopeLimits
from gateway.api.admin.requests import check_query, invalid_value, read_actor, read_parameters
from gateway.api.http.json import json_response
from gateway.api.limit_rows import limits_object
from gateway.api.services import SERVICES

RAISE_FIELDS: Final = ("limit", "amount", "until", "reason")
_EXPECTED_SCOPE: Final = "everyone, team:NAME or key:NAME"


async def show_limits(request: web.Request) -> web.StreamResponse:
    """`GET /admin/limits?scope=…`: each limit, what is used of it, and its raises."""
    check_query(request, ("scope",))
    scope = _scope(request.query.get("scope"))
    return await _answer(request, await request.app[SERVICES].limit_changes.show(scope))


async def change_limits(request: web.Request) -> web.StreamResponse:
    """`PATCH /admin/limits`: merges limits; `null` removes one. Holds for new requests."""
    fields = await read_parameters(request, ("scope", "limits"))
    if "limits" not in fields:
        raise invalid_value("limits", "limits by name")
    changed = await request.app[SERVICES].limit_changes.set(
        _scope(fields.get("scope")), fields["limits"], actor=read_actor(request)
    )
    return await _answer(request, changed)


async def raise_limit(request: web.Request) -> web.StreamResponse:
    """`POST /admin/limits/raise`: adds to a limit until the end of a day."""
    fields = await read_parameters(request, ("scope", *RAISE_FIELDS))
    scope = _scope(fields.pop("scope", None))
    raised = await request.app[SERVICES].limit_changes.add_raise(
        scope, fields, actor=read_actor(request)
    )
    return json_response({**raised.public(), "scope": scope}, status=201)


async def end_raise(request: web.Request) -> web.StreamResponse:
    """`DELETE /admin/limits/raise/{id}`: ends a raise before its time."""
    changes, raise_id = request.app[SERVICES].limit_changes, request.match_info["id"]
    await changes.remove_raise(raise_id, actor=read_actor(request))
    return web.Response(status=204)


async def _answer(request: web.Request, found: ScopeLimits) -> web.StreamResponse:
    services = request.app[SERVICES]
    states = await services.read_limit_states(found.subject)
    return json_response(
        limits_object(found, states, time_zone=services.calendar.time_zone, now=services.clock())
    )


def _scope(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise invalid_value("scope", _EXPECTED_SCOPE)
    return value
