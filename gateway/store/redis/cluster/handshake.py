"""What a cluster is checked for before commands are sent: its map of slots, and its schema version.

Redis keeps the version in a key of one slot. So it is checked again after each connect to the node
that has this slot, because the node may have been replaced, and its data with it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from redis import exceptions as redis_errors

from gateway.errors import StoreUnavailable
from gateway.store.handshake import SCHEMA_VERSION, SchemaMismatch, StoreMissing
from gateway.store.redis.client import schema_mismatch_refusal
from gateway.store.redis.cluster.nodes import NO_SLOTS, ClusterNodes
from gateway.store.redis.cluster.stage import ClusterStage, Routed
from gateway.store.redis.faults import CONNECTION_ERRORS
from gateway.store.redis.keys import Keys
from gateway.store.redis.outage import Outage
from gateway.store.redis.scripts import SCRIPTS
from gateway.store.redis.topology.cluster import ClusterMap, slot_of
from gateway.store.redis.urls import TIMEOUT_SECONDS


class ClusterHandshake:
    """Reads the map and checks the version when that is necessary.

    `location` is that of the cluster, for messages. Deadlines are times of the event loop's clock.
    """

    def __init__(
        self,
        topology: ClusterMap,
        nodes: ClusterNodes,
        *,
        location: str,
        keys: Keys,
        may_create: bool,
        holds_books: bool,
    ) -> None:
        self._topology = topology
        self._nodes = nodes
        self._location = location
        self._schema_key = keys.schema
        self._may_create = may_create
        self._has_schema = False
        self._checking_schema = asyncio.Lock()
        self.outage = Outage(
            location=location, holds_books=holds_books, is_available=self._can_read_map
        )
        """Of calls that failed before it was known which node they need, or which one replied."""
        nodes.on_connected = self._forget_schema

    def _forget_schema(self, name: str) -> None:
        if self._topology.owner(slot_of(self._schema_key)) == name:
            self._has_schema = False

    async def prepare(self, deadline: float) -> None:
        """Reads the map and checks the version, unless that was done already.

        Raises `StoreUnavailable`, or `StoreMissing`.
        """
        if not self._topology.is_known:
            try:
                async with asyncio.timeout_at(deadline):
                    await self._topology.refresh()
            except (*CONNECTION_ERRORS, redis_errors.RedisError) as error:
                node = self._nodes.any()
                raise self._nodes.unavailable(node, error, outage=self.outage) from error
            if not self._topology.is_known:
                raise StoreUnavailable(reason=NO_SLOTS)
        if not self._has_schema:
            try:
                await self.check_schema(deadline)
            except SchemaMismatch as error:
                raise schema_mismatch_refusal(error) from error

    async def check_schema(self, deadline: float) -> None:
        """Checks the version; an empty cluster gets it, if this client may create a store.

        Raises `SchemaMismatch`, `StoreMissing`, or `StoreUnavailable`.
        """
        async with self._lock_schema(deadline):
            if self._has_schema:
                return
            source, version = SCRIPTS["handshake"].source, str(SCHEMA_VERSION).encode()
            key = self._schema_key.encode()
            command = (b"EVAL", source, b"1", key, version, b"%d" % self._may_create)
            stage = ClusterStage(self._topology, self._nodes, deadline=deadline)
            (found,) = await stage.execute([Routed(command, slot_of(key))])
            if isinstance(found, redis_errors.RedisError):
                node = self._nodes.any()
                raise node.translate(found, "the handshake", outage=self.outage) from found
            if found is None:
                raise StoreMissing(self._location)
            if found != version:
                raise SchemaMismatch(self._location, str(found, errors="replace"))
            self._has_schema = True

    @asynccontextmanager
    async def _lock_schema(self, deadline: float) -> AsyncIterator[None]:
        """Lets one request at a time check. The others then find what it has found."""
        try:
            async with asyncio.timeout_at(deadline):
                await self._checking_schema.acquire()
        except TimeoutError as error:
            node = self._nodes.get(self._nodes.owner(slot_of(self._schema_key)))
            raise self._nodes.unavailable(node, error) from error
        try:
            yield
        finally:
            self._checking_schema.release()

    async def _can_read_map(self) -> bool:
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                await self._topology.refresh()
        except (*CONNECTION_ERRORS, redis_errors.RedisError):
            return False
        return self._topology.is_known
