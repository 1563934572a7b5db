"""The connection for notifications in a cluster: to any primary.

The nodes pass every notification on to each other, so a subscription to one of them suffices.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress

from redis.asyncio.connection import AbstractConnection

from gateway.store.redis.faults import CONNECTION_ERRORS, Fault
from gateway.store.redis.topology.addresses import Address
from gateway.store.redis.topology.cluster import ClusterMap, address_of
from gateway.store.redis.topology.single import SingleServer


class ClusterAddresses:
    """`Addresses` of the primaries. Each `resolve` begins with another one."""

    is_elected = True
    current: Address | None = None

    def __init__(self, topology: ClusterMap) -> None:
        self._topology = topology
        self.location = topology.url.location
        server = self._server(topology.url.hosts[0])
        self.user, self.is_tls = server.user, server.is_tls
        self.on_replaced: list[Callable[[], None]] = []
        self._turn = 0
        self._used: Address | None = None
        topology.on_changed.append(self._follow)

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Does nothing: the map of slots follows changes."""
        yield

    async def resolve(self) -> Sequence[Address | None]:
        """The primaries. Raises redis-py's errors and `OSError`."""
        if not self._topology.is_known:
            await self._topology.refresh()
        # Another one first, because the last one may hang or be lost.
        self._turn += 1
        names = self._topology.primaries
        first = self._turn % max(1, len(names))
        return [address_of(name) for name in (*names[first:], *names[:first])]

    async def connect(self, address: Address | None) -> AbstractConnection:
        """A connection to a primary. Raises redis-py's errors and `OSError`."""
        self._used = address or self._topology.url.hosts[0]
        # Its name is resolved here, and its certificate has that name.
        server = self._server(self._used)
        *others, last = await server.resolve()
        for each in others:
            with suppress(*CONNECTION_ERRORS):
                return await server.connect(each)
        return await server.connect(last)

    async def diagnose(self) -> Fault | None:
        """As `SingleServer.diagnose`, for the first host of the URL."""
        return await self._server(self._topology.url.hosts[0]).diagnose()

    def _server(self, address: Address) -> SingleServer:
        return SingleServer(self._topology.url.node_url(address))

    def _follow(self, _changed: frozenset[int]) -> None:
        """Leaves a node that is no longer a primary, because it may be cut off from the others."""
        used = self._used
        if used is not None and f"{used.host}:{used.port}" not in self._topology.primaries:
            self._used = None
            for call in self.on_replaced:
                call()
