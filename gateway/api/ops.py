"""What operators' machines ask: is it alive, is it ready, what does it count."""

from __future__ import annotations

import asyncio

import orjson
from aiohttp import web

from gateway.api.services import SERVICES
from gateway.metrics import CONTENT_TYPE


async def healthz(_request: web.Request) -> web.Response:
    """Alive, as long as the loop runs."""
    return _json({"status": "ok"})


async def readyz(request: web.Request) -> web.Response:
    """503 only before the store was first reached and while draining; says what is degraded."""
    health = request.app[SERVICES].health
    if health.is_draining:
        return _json({"status": "draining", "degraded": []}, status=503)
    if not health.store_reached:
        return _json({"status": "starting", "degraded": ["store"]}, status=503)
    return _json({"status": "ready", "degraded": [] if health.store_up else ["store"]})


async def metrics(request: web.Request) -> web.Response:
    """Prometheus' text form; rendered in a thread, since many series take milliseconds."""
    body = await asyncio.to_thread(request.app[SERVICES].metrics.render)
    return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE})


def _json(data: object, *, status: int = 200) -> web.Response:
    return web.Response(
        body=orjson.dumps(data),
        status=status,
        content_type="application/json",
        headers={"Cache-Control": "no-store"},
    )
