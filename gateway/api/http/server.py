"""The HTTP server of one address: takes clients, makes a `Connection` of each, and ends them.

A client is counted when it connects, with TLS before its handshake. Those beyond a bound are
refused by `connection_limits`. How a `Connection` reads and answers is `connection`.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Final, cast
from weakref import WeakSet

from aiohttp import web

from gateway.api.cors import CORS, Cors
from gateway.api.http import sending
from gateway.api.http.answering import Shared
from gateway.api.http.body import HeldBytes
from gateway.api.http.connection import Connection
from gateway.api.http.connection_limits import ConnectionLimits, OpenConnections, Reason
from gateway.api.http.dispatch import Dispatcher
from gateway.api.http.handshake import Handshake
from gateway.api.http.request_class import create_request_class
from gateway.tasks import Turns

MAX_EARLY_BYTES: Final = 64 << 20
"""Bytes that a worker holds of incomplete heads, and of requests sent ahead. They need no key, so
they are counted apart from bodies, whose memory they must not fill."""


class Arrival(asyncio.Protocol):
    """A client until it is accepted.

    A `Connection` and its parser refer to each other until the connection is lost. One that was
    never made would be left to the collector, and needs no key.
    """

    def __init__(self, server: ConnectionServer) -> None:
        self._server = server

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Serves the connection if there is room for it."""
        self._server.accept(self, cast(asyncio.Transport, transport))


class TlsArrival(Handshake):
    """A client until its TLS handshake is finished."""

    def __init__(self, server: ConnectionServer, context: ssl.SSLContext) -> None:
        super().__init__()
        self._server = server
        self._context = context
        self.address: str | None = None
        """What it is counted under, until the `Connection` is."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Starts the handshake if there is room for the connection."""
        self._server.accept_tls(self, cast(asyncio.Transport, transport), self._context)


class Runner(web.AppRunner):
    """Runs an application on `Connection`s."""

    def __init__(
        self,
        app: web.Application,
        *,
        head_seconds: float,
        limits: ConnectionLimits | None = None,
        on_refused: Callable[[Reason], None] = lambda reason: None,
        **kwargs: Any,
    ) -> None:
        # A small compressed body could expand without end. `read_body` refuses compressed ones.
        super().__init__(app, auto_decompress=False, **kwargs)
        self._head_seconds = head_seconds
        self._limits = limits or ConnectionLimits()
        self._on_refused = on_refused
        self._cors = app.get(CORS) or Cors()

    async def _make_server(self) -> web.Server:
        server = await super()._make_server()
        loop = asyncio.get_running_loop()
        return ConnectionServer(
            Dispatcher(self.app),
            request_factory=create_request_class(self.app, loop),
            loop=loop,
            head_seconds=self._head_seconds,
            limits=self._limits,
            on_refused=self._on_refused,
            cors=self._cors,
            **server._kwargs,  # noqa: SLF001 - aiohttp has no other way to name a connection class
        )


class ConnectionServer(web.Server):
    """The connections of one address in one worker, and what they share."""

    def __init__(
        self,
        handler: Any,
        *,
        head_seconds: float,
        limits: ConnectionLimits,
        on_refused: Callable[[Reason], None],
        cors: Cors,
        **kwargs: Any,
    ) -> None:
        super().__init__(handler, **kwargs)
        self.shared = Shared(
            head_seconds,
            limits,
            open_connections=OpenConnections(limits, on_refused=on_refused, cors=cors),
            body_memory=HeldBytes(limits.max_body_memory_bytes),
            early_memory=HeldBytes(MAX_EARLY_BYTES),
            turns=Turns(),
            cors=cors,
        )
        # Weak, because a client that leaves at once is not reported: its protocol is dropped.
        self._arrivals: WeakSet[Arrival | TlsArrival] = WeakSet()
        self._handshakes: set[asyncio.Task[None]] = set()
        self._check: asyncio.TimerHandle | None = None
        self._check_later()

    def __call__(self) -> Arrival:  # type: ignore[override]  # it becomes a `Connection`
        arrival = Arrival(self)
        self._arrivals.add(arrival)
        return arrival

    def over_tls(self, context: ssl.SSLContext) -> TlsArrival:
        """As a call, for a connection with TLS."""
        arrival = TlsArrival(self, context)
        self._arrivals.add(arrival)
        return arrival

    @property
    def is_idle(self) -> bool:
        """Whether no client is connected, or in its handshake."""
        return not (self._connections or self._arrivals or self._handshakes)

    def accept(self, arrival: Arrival, transport: asyncio.Transport) -> None:
        """Makes a `Connection` of a client, unless there is no room for it."""
        self._arrivals.discard(arrival)
        address = self.shared.open_connections.accept(transport)
        if address is not None:
            self._connect(transport, address)

    def accept_tls(
        self, arrival: TlsArrival, transport: asyncio.Transport, context: ssl.SSLContext
    ) -> None:
        """Makes a `Connection` of a client after its handshake, unless there is no room for it."""
        self._arrivals.discard(arrival)
        arrival.address = self.shared.open_connections.accept(transport, speaks_tls=True)
        if arrival.address is not None:
            task = self._loop.create_task(self._shake_hands(arrival, transport, context))
            self._handshakes.add(task)
            # Not in the task, which may be cancelled before it begins.
            task.add_done_callback(partial(self._end_handshake, arrival, transport))

    async def _shake_hands(
        self, arrival: TlsArrival, transport: asyncio.Transport, context: ssl.SSLContext
    ) -> None:
        stream = await arrival.finish(transport, context)
        if stream is None or arrival.address is None:
            return
        connection = self._connect(stream, arrival.address)
        arrival.address = None
        if early := arrival.take_early():
            connection.data_received(early)

    def _end_handshake(
        self, arrival: TlsArrival, transport: asyncio.Transport, task: asyncio.Task[None]
    ) -> None:
        self._handshakes.discard(task)
        if arrival.address is not None:
            self.shared.open_connections.release(arrival.address)
            transport.abort()

    def _connect(self, transport: asyncio.Transport, address: str) -> Connection:
        """Serves a client that is counted by `address`."""
        connection = Connection(self, self.shared, address, loop=self._loop, **self._kwargs)
        transport.set_protocol(connection)
        connection.connection_made(transport)
        return connection

    async def shutdown(self, timeout: float | None = None) -> None:  # noqa: ASYNC109 - aiohttp's
        """Closes all connections."""
        self.shared.open_connections.close()
        try:
            await self._end_handshakes()
            await super().shutdown(timeout)
        finally:
            if self._check is not None:
                self._check.cancel()

    async def _end_handshakes(self) -> None:
        handshakes = list(self._handshakes)
        for task in handshakes:
            task.cancel()
        await asyncio.gather(*handshakes, return_exceptions=True)

    def _check_later(self) -> None:
        seconds = sending.WRITE_STALL_SECONDS / sending.PROGRESS_CHECKS
        self._check = self._loop.call_later(seconds, self._check_progress)

    def _check_progress(self) -> None:
        # All of them, also those that are idle or closing: whatever an answer waits for, a client
        # that does not read holds a descriptor and the answer's bytes.
        now = time.monotonic()
        for connection in list(self._connections):
            if isinstance(connection, Connection):
                connection.check_progress(now)
        self._check_later()
