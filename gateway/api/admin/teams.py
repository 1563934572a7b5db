"""`/admin/teams`: creates, lists, changes and removes teams."""

from __future__ import annotations

import orjson
from aiohttp import web

from gateway.access.specs import parse_model
from gateway.access.subject_records import NewTeam
from gateway.api.admin.requests import check_models, read_actor, read_object
from gateway.api.http.json import JSON, json_response
from gateway.api.services import SERVICES


async def create_team(request: web.Request) -> web.Response:
    """`POST /admin/teams`: a team, which keys may name already."""
    spec = parse_model(NewTeam, await read_object(request))
    check_models(request, spec.models or ())
    team = await request.app[SERVICES].teams.create(spec, actor=read_actor(request))
    return json_response(team.public(), status=201)


async def list_teams(request: web.Request) -> web.Response:
    """`GET /admin/teams`: all teams by name, also those that only keys name."""
    # One by one: orjson keeps the event loop from running while it encodes.
    listed = await request.app[SERVICES].teams.map_teams(lambda team: orjson.dumps(team.public()))
    return web.Response(body=b'{"data":[%b]}' % b",".join(listed), content_type=JSON)


async def show_team(request: web.Request) -> web.Response:
    """`GET /admin/teams/{name}`."""
    team = await request.app[SERVICES].teams.show(request.match_info["name"])
    return json_response(team.public())


async def change_team(request: web.Request) -> web.Response:
    """`PATCH /admin/teams/{name}`: merges the fields; `null` removes one."""
    changes = await read_object(request)
    models = changes.get("models")
    if isinstance(models, list):
        check_models(request, models)
    teams, name = request.app[SERVICES].teams, request.match_info["name"]
    return json_response((await teams.change(name, changes, actor=read_actor(request))).public())


async def remove_team(request: web.Request) -> web.Response:
    """`DELETE /admin/teams/{name}`: of a team without active keys."""
    teams, name = request.app[SERVICES].teams, request.match_info["name"]
    await teams.remove(name, actor=read_actor(request))
    return web.Response(status=204)
