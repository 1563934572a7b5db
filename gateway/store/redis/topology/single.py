"""One Redis server, whose name is resolved again at every connect.

After a failover the name leads to another server while sockets to the old one stay open. A name may
also have several addresses, of a master and its replicas: `client` takes the first that takes
writes, and pub/sub follows it.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from redis.asyncio.connection import AbstractConnection

from gateway.store.redis.faults import Fault
from gateway.store.redis.pools import create_pool
from gateway.store.redis.topology.addresses import Address, Connector
from gateway.store.redis.topology.diagnosis import diagnose
from gateway.store.redis.urls import redacted_url


class SingleServer:
    """`Addresses` of one URL. Raises `ValueError` for a URL that cannot be used."""

    is_elected = False

    def __init__(self, url: str) -> None:
        self.location = redacted_url(url)
        pool = create_pool(url)
        self._connector = Connector(pool)
        self.is_tls = self._connector.is_tls
        options = pool.connection_kwargs
        self.user = str(options.get("username") or "default")
        self._path: str | None = options.get("path")
        self._host = str(options.get("host") or "localhost")
        self._port = int(options.get("port") or 6379)
        self.current: Address | None = None
        self.on_replaced: list[Callable[[], None]] = []

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Nothing says that a name leads to another server: the next connect finds it."""
        yield

    async def resolve(self) -> Sequence[Address | None]:
        """The addresses now, in the resolver's order; `[None]` for a unix socket."""
        if self._path is not None:
            return [None]
        found = await asyncio.get_running_loop().getaddrinfo(
            self._host, self._port, type=socket.SOCK_STREAM
        )
        hosts = dict.fromkeys(str(address[0]) for *_, address in found)
        return [Address(host, self._port) for host in hosts]

    async def connect(self, address: Address | None) -> AbstractConnection:
        """A connection with password and database. Raises redis-py's errors."""
        return await self._connector.connect(address, server_name=self._host)

    async def diagnose(self) -> Fault | None:
        """Why a connection could not use the server, if its error does not say it."""
        return await diagnose(self._connector, host=self._host, port=self._port, path=self._path)
