"""`/admin/upstream`: the accounts at upstream, how purchases end there, and their switches."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from gateway.api.admin.requests import invalid_value, read_actor, read_parameters
from gateway.api.http.json import json_response
from gateway.api.services import SERVICES, Services
from gateway.errors import ErrorCode, InvalidRequest
from gateway.purchasing.account_states import public_accounts, public_states


async def show_upstreams(request: web.Request) -> web.StreamResponse:
    """`GET /admin/upstream`: every account, as all workers and gateways together know it."""
    return json_response({"data": await read_upstreams(request.app[SERVICES])})


async def switch_upstream(request: web.Request) -> web.StreamResponse:
    """`PATCH /admin/upstream/{name}`: takes an account out of service, or puts it back.

    Purchases under way go on. Every worker of every gateway knows it within a second.
    """
    services, name = request.app[SERVICES], request.match_info["name"]
    body = await read_parameters(request, ("enabled", "reason"))
    enabled, reason = body.get("enabled"), body.get("reason")
    if not isinstance(enabled, bool):
        raise InvalidRequest(
            "'enabled' must be true or false.", param="enabled", code=ErrorCode.INVALID_VALUE
        )
    if reason is not None and not isinstance(reason, str):
        raise invalid_value("reason", "text")
    switches, actor = services.upstream_switches, read_actor(request)
    if enabled:
        await switches.enable(name, actor=actor)
    else:
        await switches.disable(name, actor=actor, reason=reason)
    rows = await read_upstreams(services)
    return json_response(next(row for row in rows if row["name"] == name))


async def read_upstreams(services: Services) -> list[dict[str, Any]]:
    """The accounts of this gateway, and others that the store knows."""
    states = await services.upstream_health.read_all()
    await services.upstream_switches.refresh()
    budgets = await services.read_budgets(services.pool.accounts.all)
    pool = services.pool
    accounts = public_accounts(
        pool.accounts.all,
        {one.name: pool.client(one.name).settings.base_url for one in pool.accounts},
        switch_of=services.upstream_switches.switch_of,
        budgets=budgets,
    )
    return public_states(states, accounts)
