"""`/admin/teams`: creates, lists, changes and removes teams."""

from __future__ import annotations

import asyncio

import orjson
from aiohttp import web

from gateway.access.specs import parse_model
from gateway.access.subject_records import NewTeam
from gateway.api.admin.keys import with_limits
from gateway.api.admin.requests import check_models, check_query, read_actor, read_object
from gateway.api.http.json import JSON, json_response
from gateway.api.limit_rows import used_rows
from gateway.api.services import SERVICES
from gateway.billing.reports import SLICE_ROWS


async def create_team(request: web.Request) -> web.StreamResponse:
    """`POST /admin/teams`: a team, which keys may name already."""
    spec = parse_model(NewTeam, await read_object(request))
    check_models(request, spec.models or ())
    team = await request.app[SERVICES].teams.create(spec, actor=read_actor(request))
    return json_response(team.public(), status=201)


async def list_teams(request: web.Request) -> web.StreamResponse:
    """`GET /admin/teams`: all teams by name, also those that only keys name.

    `with=limits` adds what they have used of their limits.
    """
    check_query(request, ("with",))
    services = request.app[SERVICES]
    if not with_limits(request):
        # One by one: orjson keeps the event loop from running while it encodes.
        listed = await services.teams.map_teams(lambda team: orjson.dumps(team.public()))
        return web.Response(body=b'{"data":[%b]}' % b",".join(listed), content_type=JSON)
    teams = await services.teams.map_teams(lambda team: (team.record.name, team.public()))
    subjects = await services.limit_changes.of_teams([name for name, _ in teams])
    uses, now = await services.read_uses(list(subjects.values())), services.clock()
    rows = []
    for index, (name, public) in enumerate(teams, start=1):
        used = used_rows("team", uses[subjects[name].name], now)
        rows.append(orjson.dumps({**public, "used": used}))
        if index % SLICE_ROWS == 0:
            await asyncio.sleep(0)
    return web.Response(body=b'{"data":[%b]}' % b",".join(rows), content_type=JSON)


async def show_team(request: web.Request) -> web.StreamResponse:
    """`GET /admin/teams/{name}`."""
    team = await request.app[SERVICES].teams.show(request.match_info["name"])
    return json_response(team.public())


async def change_team(request: web.Request) -> web.StreamResponse:
    """`PATCH /admin/teams/{name}`: merges the fields; `null` removes one."""
    changes = await read_object(request)
    models = changes.get("models")
    if isinstance(models, list):
        check_models(request, models)
    teams, name = request.app[SERVICES].teams, request.match_info["name"]
    return json_response((await teams.change(name, changes, actor=read_actor(request))).public())


async def remove_team(request: web.Request) -> web.StreamResponse:
    """`DELETE /admin/teams/{name}`: of a team without active keys."""
    teams, name = request.app[SERVICES].teams, request.match_info["name"]
    await teams.remove(name, actor=read_actor(request))
    return web.Response(status=204)
