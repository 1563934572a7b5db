"""The nodes of a Redis Cluster, and which of them has which hash slot.

redis-py's cluster client reads the map from any node that answers. `ClusterMap` keeps the map,
corrects it by every redirection, and reads it again at most a few times a second. The connections
for commands are in `cluster.nodes`.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from itertools import groupby
from typing import Any, Final

from redis import exceptions as redis_errors
from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.asyncio.connection import SSLConnection, parse_url
from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot
from redis.driver_info import DriverInfo

from gateway.errors import detach
from gateway.store.redis.topology.addresses import Address
from gateway.store.redis.topology.cluster_url import ClusterUrl, node_name, parse_cluster_url

REFRESH_SECONDS: Final = 10.0
"""The map is read again this often, also without a redirection."""

MIN_REFRESH_SECONDS: Final = 0.2
"""The pause between two reads of the map, however many requests need it."""

_NODE_SECONDS: Final = 0.7
"""How long one node may take to connect, and to answer, before another is asked."""

_CLOSE_SECONDS: Final = 0.5
"""How long `open` waits on exit for a read of the map in progress."""

_DRIVER_INFO: Final = DriverInfo()


def slot_of(key: bytes | str) -> int:
    """The hash slot of a key."""
    return key_slot(key.encode() if isinstance(key, str) else key)


def address_of(name: str) -> Address:
    """The address of a node by its name, `host:port`."""
    host, _, port = name.rpartition(":")
    return Address(host, int(port))


def create_cluster(url: ClusterUrl) -> RedisCluster:
    """redis-py's client, which has no connection yet. Raises `ValueError` or `TypeError`."""
    options: dict[str, Any] = dict(parse_url(url.node_url(url.hosts[0])))
    options = {name: options[name] for name in options if name not in ("host", "port", "path")}
    if options.pop("connection_class", None) is SSLConnection:
        options["ssl"] = True
    return RedisCluster(
        startup_nodes=[ClusterNode(one.host, one.port) for one in url.hosts],
        **options
        | {
            "require_full_coverage": False,
            "protocol": 2,
            "decode_responses": False,
            "socket_timeout": _NODE_SECONDS,
            "socket_connect_timeout": _NODE_SECONDS,
            "driver_info": _DRIVER_INFO,
        },
    )


class ClusterMap:
    """Which primary has which slot, as far as it is known. Nodes are named `host:port`."""

    def __init__(self, url: str) -> None:
        try:
            self.url = parse_cluster_url(url)
            self._cluster = create_cluster(self.url)
        except (TypeError, ValueError) as error:
            # A `TypeError` names an option that redis-py does not know.
            raise ValueError(f"The Redis URL should be {error}.") from None
        self._owners: list[str | None] = [None] * REDIS_CLUSTER_HASH_SLOTS
        self._slot_counts: Counter[str] = Counter()
        """How many slots each primary has."""
        self._version: str | None = None
        self._refresh: asyncio.Task[Exception | None] | None = None
        self._next_refresh_at = 0.0
        self._wanted = asyncio.Event()
        self._failed_node: str | None = None
        self._has_failed = False
        self._is_closed = False
        self.primaries: Sequence[str] = ()
        """The nodes that have slots, sorted by name; empty until the map is read."""
        self.on_changed: list[Callable[[frozenset[int]], None]] = []
        """Called with the slots that another node has from now on."""

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Reads the map again and again until exit, from the first `refresh` on."""
        task = asyncio.create_task(self._refresh_again(), name="redis-cluster-map")
        try:
            yield
        finally:
            self._is_closed = True
            task.cancel()
            if self._refresh is not None:
                # redis-py does not close a connection whose connect is cancelled, so that is done
                # only if nodes hang.
                await asyncio.wait([self._refresh], timeout=_CLOSE_SECONDS)
                self._refresh.cancel()
            running = [each for each in (task, self._refresh) if each is not None]
            await asyncio.gather(*running, return_exceptions=True)

    @property
    def is_known(self) -> bool:
        """Whether the map was read at least once."""
        return bool(self.primaries)

    @property
    def version(self) -> str:
        """A text that differs for every distribution of the slots."""
        if self._version is None:
            runs = [(owner, len(list(run))) for owner, run in groupby(self._owners)]
            digest = hashlib.sha1(repr(runs).encode(), usedforsecurity=False)
            self._version = digest.hexdigest()[:12]
        return self._version

    def owner(self, slot: int) -> str | None:
        """The primary that has the slot; None if no node has it."""
        return self._owners[slot]

    def slots(self) -> Mapping[str, int]:
        """The lowest slot of each primary."""
        lowest: dict[str, int] = {}
        for slot, owner in enumerate(self._owners):
            if owner is not None:
                lowest.setdefault(owner, slot)
        return lowest

    def move(self, slot: int, name: str) -> None:
        """Notes that a redirection gives the slot to this node."""
        before = self._owners[slot]
        if before == name:
            return
        self._owners[slot] = name
        # Not counted from all owners again, because each slot that moves is one redirection.
        self._slot_counts[name] += 1
        if before is not None:
            self._slot_counts[before] -= 1
            if not self._slot_counts[before]:
                del self._slot_counts[before]
        self._use(frozenset({slot}))

    def want_refresh(self, *, failed: str | None = None) -> None:
        """Has the map read soon, from the node `failed` last. Returns at once."""
        self._failed_node = failed or self._failed_node
        self._wanted.set()

    async def refresh(self, *, failed: str | None = None) -> None:
        """Reads the map; callers at the same time share it.

        Raises redis-py's errors if no node answers.
        """
        self._failed_node = failed or self._failed_node
        if self._refresh is None or self._refresh.done():
            if self._is_closed:
                raise redis_errors.ConnectionError("the store is closed")
            self._refresh = asyncio.create_task(self._read(), name="redis-cluster-refresh")
        # It goes on if this request is cancelled or times out.
        await asyncio.wait([refresh := self._refresh])
        if refresh.cancelled():
            # Only `open` cancels it. This request is not cancelled, so it needs another error.
            raise redis_errors.ConnectionError("the store is closed")
        if (error := refresh.result()) is not None:
            raise error

    async def _refresh_again(self) -> None:
        while not self._is_closed:
            timeout = REFRESH_SECONDS if self.is_known else None
            try:
                async with asyncio.timeout(timeout):
                    await self._wanted.wait()
            except TimeoutError:
                pass
            self._wanted.clear()
            try:
                await self.refresh()
            except (redis_errors.RedisError, OSError):
                # Requests that need the map report the error.
                await asyncio.sleep(MIN_REFRESH_SECONDS)

    async def _read(self) -> Exception | None:
        """Reads the map once; returns the error."""
        loop = asyncio.get_running_loop()
        await asyncio.sleep(self._next_refresh_at - loop.time())
        self._next_refresh_at = loop.time() + MIN_REFRESH_SECONDS
        failed, self._failed_node = self._failed_node, None
        manager = self._cluster.nodes_manager
        if self._has_failed:
            # All nodes may have new addresses, so the hosts of the URL are asked again too.
            for one in self.url.hosts:
                node = ClusterNode(one.host, one.port, **manager.connection_kwargs)
                manager.startup_nodes.setdefault(node.name, node)
        self._has_failed = True
        try:
            # redis-py reads a map without any slot, and then fails for want of a node.
            with suppress(IndexError):
                await manager.initialize(last_failed_node_name=failed)
            owners = self._owners_in(manager.slots_cache)
            self._has_failed = not manager.slots_cache
        except redis_errors.RedisClusterException as error:
            return detach(_cause_of(error))
        except (redis_errors.RedisError, OSError) as error:
            return detach(error)
        except (AttributeError, KeyError, TypeError, ValueError):
            return redis_errors.InvalidResponse("CLUSTER SLOTS")
        finally:
            # An open connection might lead to a node that hangs by the next read.
            await manager.aclose("startup_nodes")
            self._next_refresh_at = loop.time() + MIN_REFRESH_SECONDS
        changed = {slot for slot, owner in enumerate(owners) if self._owners[slot] != owner}
        if changed:
            self._owners = owners
            self._slot_counts = Counter(owner for owner in owners if owner is not None)
            self._use(frozenset(changed))
        return None

    def _owners_in(self, found: Mapping[int, Sequence[ClusterNode]]) -> list[str | None]:
        """Raises `NoAddress`."""
        owners: list[str | None] = [None] * REDIS_CLUSTER_HASH_SLOTS
        names: dict[int, str] = {}
        for slot, nodes in found.items():
            # The slots of a range share the list of their nodes.
            if (name := names.get(id(nodes))) is None:
                host: str | None = nodes[0].host
                if host is None and len(self.url.hosts) == 1:
                    # `cluster-preferred-endpoint-type unknown-endpoint`: the address in use.
                    host = self.url.hosts[0].host
                name = names[id(nodes)] = node_name(host, int(nodes[0].port))
            owners[slot] = name
        return owners

    def _use(self, changed: frozenset[int]) -> None:
        self._version = None
        self.primaries = sorted(self._slot_counts)
        for call in self.on_changed:
            call(changed)


def _cause_of(error: Exception) -> Exception:
    """The error of the last node that was asked, or why it could not be asked."""
    cause = error.__cause__
    if isinstance(cause, redis_errors.RedisClusterException) and cause.__context__ is not None:
        cause = cause.__context__
    if not isinstance(cause, Exception):
        return redis_errors.ConnectionError(str(error))
    return cause
