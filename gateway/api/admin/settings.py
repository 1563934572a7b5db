"""`/admin/settings` and `/admin/doctor`: the settings in use, and whether all works."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from aiohttp import web

from gateway.api.admin.requests import check_query
from gateway.api.http.json import json_response
from gateway.api.inspection import ShownFinding
from gateway.api.services import SERVICES


async def show_settings(request: web.Request) -> web.StreamResponse:
    """`GET /admin/settings`: every setting, and where it comes from. Secrets are masked."""
    check_query(request, ())
    settings = await asyncio.to_thread(request.app[SERVICES].inspection.settings)
    rows = [
        {"key": one.key, "value": one.value, "source": one.source, "origin": one.origin}
        for one in settings
    ]
    return json_response({"data": rows})


async def run_doctor(request: web.Request) -> web.StreamResponse:
    """`POST /admin/doctor`: every check, as `gateway doctor` makes it. It takes seconds.

    There is one at a time: a request meanwhile gets the findings of that one.
    """
    check_query(request, ())
    services = request.app[SERVICES]

    async def examine() -> Sequence[ShownFinding]:
        return await asyncio.to_thread(services.inspection.examine)

    findings = await services.doctor.run(None, examine, name="doctor")
    rows = [{"check": one.name, "level": one.level, "finding": one.message} for one in findings]
    return json_response({"data": rows})
