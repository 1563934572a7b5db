"""One worker: serves until it gets a signal, then drains.

SIGTERM ends the whole gateway: the worker is a lame duck first. SIGUSR1 means that another worker
serves in its place: it stops taking connections at once. Either way, it finishes open requests and
purchases.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Final

import uvloop
from aiohttp import web

from gateway.api.http.admission import ConnectionLimits, Network
from gateway.api.http.connection import Runner
from gateway.api.routes import create_app
from gateway.assembly import Gateway
from gateway.configuration.files import Configuration
from gateway.configuration.settings import Settings
from gateway.maintenance import open_running_gateway
from gateway.tuning import tune_process

LAME_DUCK_SECONDS: Final = 5.0
"""How long a worker of an ending gateway still takes connections."""

IDLE_CONNECTION_SECONDS: Final = 5.0
"""How long a replaced worker waits for a last request on its open connections."""

LAST_REQUEST_SECONDS: Final = 1.0
"""How long the request may take to arrive on the last connection that a lame duck took."""

BACKLOG: Final = 4096
"""How many connections may queue, within `net.core.somaxconn`. A client of one more connection
retries after 1, 2, 4 and 8 seconds."""


def serve(configuration: Configuration, listener: socket.socket, ready: Callable[[], None]) -> None:
    """Reads the configuration, serves on `listener` until a signal, drains, and returns.

    Raises `ConfigError` and `CatalogError` before it serves.
    """
    uvloop.run(_serve(configuration, listener, ready))


async def _serve(
    configuration: Configuration, listener: socket.socket, ready: Callable[[], None]
) -> None:
    parent = os.getppid()
    settings = configuration.read_settings()
    signals: asyncio.Queue[int] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    # Before the gateway opens: a signal that arrives meanwhile is queued, and does not kill the
    # worker.
    for number in (signal.SIGTERM, signal.SIGUSR1):
        loop.add_signal_handler(number, signals.put_nowait, number)
    async with (
        open_running_gateway(settings, configuration) as gateway,
        open_runner(settings, gateway) as runner,
    ):
        loop.add_signal_handler(signal.SIGHUP, gateway.reload_requested.set)
        site = web.SockSite(runner, listener, backlog=BACKLOG)
        tune_process()
        await site.start()
        ready()
        received = await _wait_for_signal(signals, parent)
        gateway.services.health.closes_connections = True
        if received == signal.SIGUSR1:
            # Another worker takes new connections. Those that this one took now would be cut within
            # seconds.
            await site.stop()
            await _wait_for_connections(runner, IDLE_CONNECTION_SECONDS)
        else:
            # `/readyz` answers 503 now, but load balancers need time to notice, so connections are
            # still taken.
            gateway.services.health.is_draining = True
            await _wait_for_connections(runner, LAME_DUCK_SECONDS)
            await site.stop()
            await _wait_for_connections(runner, LAST_REQUEST_SECONDS)


@asynccontextmanager
async def open_runner(settings: Settings, gateway: Gateway) -> AsyncIterator[web.AppRunner]:
    """The HTTP server, not yet listening. On exit, open requests are finished."""
    runner = Runner(
        create_app(gateway.services),
        head_seconds=settings.server.read_timeout_seconds,
        limits=connection_limits(settings),
        on_refused=gateway.services.metrics.requests.refused_connection,
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


def connection_limits(settings: Settings, *, exempt: Sequence[Network] = ()) -> ConnectionLimits:
    """The bounds of a worker's connections. Those from the networks in `exempt` count together."""
    server = settings.server
    return ConnectionLimits(
        max_head_bytes=server.max_head_bytes,
        max_body_memory_bytes=server.max_body_memory_bytes,
        max_connections=server.max_connections,
        max_per_address=server.max_connections_per_address,
        exempt=exempt,
    )


async def _wait_for_signal(signals: asyncio.Queue[int], parent: int) -> int:
    """SIGTERM or SIGUSR1. If the parent was killed, no signal will come: that counts as SIGTERM."""
    while os.getppid() == parent:
        with suppress(TimeoutError):
            return await asyncio.wait_for(signals.get(), timeout=1.0)
    return signal.SIGTERM


async def _wait_for_connections(runner: web.AppRunner, seconds: float) -> None:
    """Returns when all connections are closed, or after so many seconds."""
    deadline = time.monotonic() + seconds
    while runner.server is not None and runner.server.connections:
        if time.monotonic() > deadline:
            return
        await asyncio.sleep(0.05)
