"""Where the server that takes the commands is, and how to connect to it.

`RedisClient` asks before every connect, because the answer changes: a name may lead to another
server, and sentinels elect another master.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from redis.asyncio import ConnectionPool
from redis.asyncio.connection import AbstractConnection, SSLConnection

from gateway.store.redis.faults import Fault
from gateway.store.redis.topology.tls_contexts import load_context
from gateway.store.redis.urls import TIMEOUT_SECONDS


@dataclass(frozen=True, slots=True)
class Address:
    """A host name or an IP address, and a port."""

    host: str
    port: int


class Addresses(Protocol):
    """The addresses of one server, in the order in which a client tries them."""

    location: str
    """The URL without user, password and options, for messages."""

    user: str
    """The ACL user of the server."""

    is_tls: bool

    is_elected: bool
    """Whether sentinels or a cluster elect the server that takes writes. Then another server may
    soon replace one that refuses them."""

    current: Address | None
    """The address of the server that takes the commands. None before the first connect, after the
    server was replaced, and for a unix socket."""

    on_replaced: list[Callable[[], None]]
    """Called when another server has taken over. The old one may still answer on open
    connections."""

    def open(self) -> AbstractAsyncContextManager[None]:
        """Follows changes until exit."""
        ...

    async def resolve(self) -> Sequence[Address | None]:
        """The addresses now; `[None]` for a unix socket. Raises redis-py's errors and `OSError`."""
        ...

    async def connect(self, address: Address | None) -> AbstractConnection:
        """A connection with password and database. Raises redis-py's errors and `OSError`."""
        ...

    async def diagnose(self) -> Fault | None:
        """Why a connection could not use the server, if its error does not say it."""
        ...


async def connect_to_current(addresses: Addresses) -> AbstractConnection:
    """A connection to the server that takes the commands, beside the one that carries them.

    Raises redis-py's errors and `OSError`, such as `TimeoutError`.
    """
    async with asyncio.timeout(TIMEOUT_SECONDS):
        address = addresses.current or (await addresses.resolve())[0]
        return await addresses.connect(address)


class NamedSslConnection(SSLConnection):
    """Connects to one address of a host, whose name the certificate must have."""

    server_name: str | None = None

    def _connection_arguments(self) -> Mapping[str, Any]:
        arguments = super()._connection_arguments()
        return {**arguments, "server_hostname": self.server_name or self.host}


class Connector:
    """Connects to any address with the options of a pool."""

    def __init__(self, pool: ConnectionPool) -> None:
        self._pool = pool
        if pool.connection_class is SSLConnection:
            pool.connection_class = NamedSslConnection
        self.is_tls = pool.connection_class is NamedSslConnection
        self._spare: AbstractConnection | None = None
        """A connection that failed; it can connect again, to any address."""

    def make_connection(self) -> Any:
        """A connection that is not open, to the address of the pool's URL."""
        return self._pool.make_connection()  # type: ignore[no-untyped-call]

    async def connect(
        self, address: Address | None, *, server_name: str | None = None
    ) -> AbstractConnection:
        """An open connection; the certificate has `server_name`, by default the address's host."""
        spare, self._spare = self._spare, None
        connection: Any = spare or self.make_connection()
        if address is not None:
            connection.host, connection.port = address.host, address.port
            connection.server_name = server_name
        try:
            if self.is_tls:
                await asyncio.to_thread(load_context, connection.ssl_context)
            await connection.connect()
        except BaseException:
            await connection.disconnect(nowait=True)
            # The 30 objects of a connection refer to each other, so each new one would leave them
            # to the garbage collector.
            self._spare = connection
            raise
        return connection  # type: ignore[no-any-return]
