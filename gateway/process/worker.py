"""One worker: serves, and drains."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import (
    asynccontextmanager,
    suppress,
)
from typing import Final

import uvloop
from aiohttp import web

from gateway.api.http.connection import Runner
from gateway.api.routes import create_app
from gateway.assembly import Gateway
from gateway.configuration.files import Configuration
from gateway.configuration.settings import Settings
from gateway.maintenance import open_running_gateway
from gateway.tuning import tune_process

LISTENER_LINGERS_SECONDS: Final = 5.0
"""How long a draining worker still takes connections, so that balancers notice (CONTRACT §3)."""

IDLE_LINGERS_SECONDS: Final = 5.0
"""How long a replaced worker waits for a last request on connections that it holds."""

LAST_REQUEST_SECONDS: Final = 1.0
"""How long a request may take to arrive on a connection that was the last one taken."""

BACKLOG: Final = 4096
"""How many connections wait to be taken, as far as `net.core.somaxconn` lets them; a client of one
more tries again after a second, then after two, four, eight."""


# ── one worker ──────────────────────────────────────────────────────────────────────────────


@asynccontextmanager
async def open_runner(settings: Settings, gateway: Gateway) -> AsyncIterator[web.AppRunner]:
    """The HTTP server around the services, not yet listening. On leaving, answers are finished."""
    runner = Runner(
        create_app(gateway.services),
        head_seconds=settings.server.read_timeout_seconds,
        keepalive_timeout=settings.server.keep_alive_seconds,
        shutdown_timeout=settings.drain_seconds,
        access_log=None,
        handle_signals=False,
    )
    await runner.setup()
    try:
        yield runner
    finally:
        await runner.cleanup()


def serve(configuration: Configuration, listener: socket.socket, ready: Callable[[], None]) -> None:
    """One worker: reads the configuration, serves on `listener`, drains when told to, returns.

    It is told by SIGTERM when the gateway ends, and by SIGUSR1 when another worker serves in its
    place. Raises `ConfigError` and `CatalogError` before it serves.
    """
    uvloop.run(_serve(configuration, listener, ready))


async def _serve(
    configuration: Configuration, listener: socket.socket, ready: Callable[[], None]
) -> None:
    parent = os.getppid()
    settings = configuration.read_settings()
    told: asyncio.Queue[int] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGUSR1):
        loop.add_signal_handler(number, told.put_nowait, number)
    async with (
        open_running_gateway(settings, configuration) as gateway,
        open_runner(settings, gateway) as runner,
    ):
        loop.add_signal_handler(signal.SIGHUP, gateway.reload_asked.set)
        site = web.SockSite(runner, listener, backlog=BACKLOG)
        tune_process()
        await site.start()
        ready()
        is_replaced = await _told_to_leave(told, parent) == signal.SIGUSR1
        health = gateway.services.health
        health.closes_connections, health.is_draining = True, not is_replaced
        await _let_clients_leave(site, runner, is_replaced=is_replaced)


async def _told_to_leave(told: asyncio.Queue[int], parent: int) -> int:
    """The signal; SIGTERM also when the parent was killed: nobody would count signals any more."""
    while os.getppid() == parent:
        with suppress(TimeoutError):
            return await asyncio.wait_for(told.get(), timeout=1.0)
    return signal.SIGTERM


async def _let_clients_leave(
    site: web.BaseSite, runner: web.AppRunner, *, is_replaced: bool
) -> None:
    """Closes the listener, and cuts no connection on which a request may be under way.

    A gateway that ends takes connections for a while, for balancers that have not noticed. The
    last one may have been taken a moment before that while is over: its request is waited for.
    """
    if is_replaced:
        await site.stop()
        await _until_alone(runner, IDLE_LINGERS_SECONDS)
        return
    await _until_alone(runner, LISTENER_LINGERS_SECONDS)
    await site.stop()
    await _until_alone(runner, LAST_REQUEST_SECONDS)


async def _until_alone(runner: web.AppRunner, seconds: float) -> None:
    """Until no connection is open any more, so many seconds at most."""
    give_up_at = time.monotonic() + seconds
    while runner.server is not None and runner.server.connections:
        if time.monotonic() > give_up_at:
            return
        await asyncio.sleep(0.05)
