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
from functools import partial
from typing import Final

import uvloop
from aiohttp import web

from gateway.api.http.connection_limits import ConnectionLimits
from gateway.api.http.server import ConnectionServer, Runner
from gateway.api.routes import ALL_TABLES, Table, admin_routes, client_routes, create_app
from gateway.assembly import Gateway
from gateway.configuration.files import Configuration
from gateway.configuration.settings import Settings
from gateway.maintenance import open_running_gateway
from gateway.net.client_address import TrustedProxies
from gateway.net.server_tls import ServerTls
from gateway.process.inspection import create_inspection
from gateway.process.listener import Listeners
from gateway.tuning import tune_process

LAME_DUCK_SECONDS: Final = 5.0
"""How long a worker of an ending gateway still takes connections."""

IDLE_CONNECTION_SECONDS: Final = 5.0
"""How long a replaced worker waits for a last request on its open connections."""

LAST_REQUEST_SECONDS: Final = 1.0
"""How long the request may take to arrive on the last connection that a lame duck took."""

MAX_REQUEST_LINE_BYTES: Final = 2048
"""No path of the gateway is as long. aiohttp's router looks a path up once for each of its slashes,
which takes 10 ms at aiohttp's own bound of 8190 bytes."""

BACKLOG: Final = 4096
"""How many connections may queue, within `net.core.somaxconn`. A client of one more connection
retries after 1, 2, 4 and 8 seconds."""


def serve(configuration: Configuration, listeners: Listeners, ready: Callable[[], None]) -> None:
    """Reads the configuration, serves on `listeners` until a signal, drains, and returns.

    Raises `ConfigError` and `CatalogError` before it serves.
    """
    uvloop.run(_serve(configuration, listeners, ready))


async def _serve(
    configuration: Configuration, listeners: Listeners, ready: Callable[[], None]
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
        open_running_gateway(
            settings, configuration, inspection=create_inspection(configuration, settings)
        ) as gateway,
        open_sites(settings, gateway, listeners) as sites,
    ):
        loop.add_signal_handler(signal.SIGHUP, gateway.reload_requested.set)
        tune_process()
        for site in sites:
            await site.start()
        ready()
        workers = gateway.services.metrics.process.workers
        workers.set(1)
        received = await _wait_for_signal(signals, parent)
        workers.set(0)
        gateway.services.health.closes_connections = True
        # Queued purchases would wait for a turn while this worker waits for them to end.
        gateway.account_queue.drain()
        if received == signal.SIGUSR1:
            # Another worker takes new connections. Those that this one took now would be cut within
            # seconds.
            await _stop(sites)
            await _wait_for_connections(sites, IDLE_CONNECTION_SECONDS)
        else:
            # `/readyz` answers 503 now, but load balancers need time to notice, so connections are
            # still taken.
            gateway.services.health.is_draining = True
            await _wait_for_connections(sites, LAME_DUCK_SECONDS)
            await _stop(sites)
            await _wait_for_connections(sites, LAST_REQUEST_SECONDS)


class Site(web.SockSite):
    """Serves a listening socket, with TLS if there is a certificate."""

    def __init__(
        self, runner: web.AppRunner, listener: socket.socket, tls: ServerTls | None
    ) -> None:
        context = None if tls is None else tls.context
        super().__init__(runner, listener, ssl_context=context, backlog=BACKLOG)

    @property
    def is_idle(self) -> bool:
        """Whether no client is connected, or in its handshake."""
        server = self._runner.server
        return not isinstance(server, ConnectionServer) or server.is_idle

    async def start(self) -> None:
        """As aiohttp's, but connections with TLS are counted before their handshake."""
        if self._ssl_context is None:
            await super().start()
            return
        await web.BaseSite.start(self)
        server = self._runner.server
        assert isinstance(server, ConnectionServer)  # noqa: S101 - that of `Runner`, since `setup`
        self._server = await asyncio.get_running_loop().create_server(
            partial(server.over_tls, self._ssl_context), sock=self._sock, backlog=self._backlog
        )


@asynccontextmanager
async def open_sites(
    settings: Settings, gateway: Gateway, listeners: Listeners
) -> AsyncIterator[Sequence[Site]]:
    """A site for each listener, not yet listening. On exit, open requests are finished."""
    # The parent's sockets decide, not the settings, which may have changed since they were bound:
    # admin paths must never move to the address of clients.
    if listeners.admin is None:
        async with open_runner(settings, gateway) as runner:
            yield (Site(runner, listeners.clients, gateway.tls),)
        return
    async with (
        open_runner(settings, gateway, tables=(admin_routes,)) as admin,
        open_runner(settings, gateway, tables=(client_routes,)) as clients,
    ):
        yield (
            Site(clients, listeners.clients, gateway.tls),
            Site(admin, listeners.admin, gateway.tls),
        )


@asynccontextmanager
async def open_runner(
    settings: Settings, gateway: Gateway, *, tables: Sequence[Table] = ALL_TABLES
) -> AsyncIterator[web.AppRunner]:
    """An HTTP server, not yet listening. On exit, open requests are finished."""
    runner = Runner(
        create_app(gateway.services, tables=tables),
        head_seconds=settings.server.read_timeout_seconds,
        max_line_size=MAX_REQUEST_LINE_BYTES,
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


def connection_limits(settings: Settings) -> ConnectionLimits:
    """The bounds of a worker's connections."""
    server = settings.server
    return ConnectionLimits(
        max_head_bytes=server.max_head_bytes,
        max_body_memory_bytes=server.max_body_memory_bytes,
        max_connections=server.max_connections,
        max_per_address=server.max_connections_per_address,
        proxies=TrustedProxies(server.trusted_proxies),
    )


async def _wait_for_signal(signals: asyncio.Queue[int], parent: int) -> int:
    """SIGTERM or SIGUSR1. If the parent was killed, no signal will come: that counts as SIGTERM."""
    while os.getppid() == parent:
        with suppress(TimeoutError):
            async with asyncio.timeout(1.0):
                return await signals.get()
    return signal.SIGTERM


async def _stop(sites: Sequence[Site]) -> None:
    for site in sites:
        await site.stop()


async def _wait_for_connections(sites: Sequence[Site], seconds: float) -> None:
    """Returns when all connections are closed, or after so many seconds."""
    deadline = time.monotonic() + seconds
    while not all(site.is_idle for site in sites):
        if time.monotonic() > deadline:
            return
        await asyncio.sleep(0.05)
