"""The connections to the nodes of a Redis Cluster: one to each, made at the first use.

`topology.cluster` knows which node has which slot. This module keeps the connections.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from gateway.errors import StoreUnavailable
from gateway.store.redis.cluster.node import NodeClient
from gateway.store.redis.keys import Keys
from gateway.store.redis.outage import Outage
from gateway.store.redis.scripts import Script
from gateway.store.redis.topology.cluster import ClusterMap, address_of, slot_of
from gateway.store.redis.topology.single import SingleServer

FENCES: Final = 64
"""From how many numbers the search for a fence key starts, so that few keys are written."""

NO_SLOTS: Final = "The Redis Cluster has no slots."


@dataclass(frozen=True, slots=True)
class ClusterMark:
    """What the confirmation of a batch has to know of it: see `RedisClient.mark`."""

    connections: Mapping[str, int]
    """The marks of the nodes, by name."""
    executed: set[tuple[int | None, str]] = field(default_factory=set)
    """The slots of the commands that were executed, and the nodes that did it."""


class ClusterNodes:
    """A `NodeClient` by name, `host:port`. `on_connected(name)` is called after every connect."""

    def __init__(
        self,
        topology: ClusterMap,
        *,
        keys: Keys,
        scripts: Sequence[Script],
        holds_books: bool,
    ) -> None:
        self._topology = topology
        self._keys = keys
        self._scripts = scripts
        self._holds_books = holds_books
        self.on_connected: Callable[[str], None] = lambda _name: None
        self._nodes: dict[str, NodeClient] = {}
        self._fences = itertools.count()
        self._left: list[NodeClient] = []
        """Nodes without slots that still owe replies."""
        topology.on_changed.append(self._leave_others)

    def get(self, name: str) -> NodeClient:
        """The node, which need not be connected yet."""
        node = self._nodes.get(name)
        if node is None:
            server = SingleServer(self._topology.url.node_url(address_of(name)))
            node = self._nodes[name] = NodeClient(
                server,
                name=name,
                keys=self._keys,
                scripts=self._scripts,
                holds_books=self._holds_books,
                find_fence=partial(self._find_fence, name),
                has_slots=partial(self._has_slots, name),
            )
            node.on_connected = partial(self._after_connect, name)
        return node

    def any(self) -> NodeClient:
        """A primary; before the map is known, the first host of the URL."""
        first = self._topology.url.hosts[0]
        names = self._topology.primaries or [f"{first.host}:{first.port}"]
        return self.get(names[0])

    def owner(self, slot: int | None) -> str:
        """The name of the primary that has the slot; without a slot, of one that is not down.

        Raises `StoreUnavailable` if no node has any slot.
        """
        primaries = self._topology.primaries
        if not primaries:
            raise StoreUnavailable(reason=NO_SLOTS)
        if slot is not None:
            # Without an owner: any node redirects, or says that the cluster is down.
            return self._topology.owner(slot) or primaries[0]
        down = {name for name, node in self._nodes.items() if node.is_down}
        return next((name for name in primaries if name not in down), primaries[0])

    def primaries(self) -> Mapping[str, NodeClient]:
        """All nodes that have slots, each with a `probe_key` in a slot of its own."""
        found = {}
        for name in self._topology.slots():
            found[name] = node = self.get(name)
            node.probe_key = self._find_key(self._keys.probe, name)
        return found

    def mark(self) -> ClusterMark:
        """The mark of a batch that is about to be executed."""
        return ClusterMark({name: node.mark() for name, node in self._nodes.items()})

    def unavailable(
        self, node: NodeClient, error: Exception, *, outage: Outage | None = None
    ) -> Exception:
        """The error for callers; the map is read again, because the node may have a successor.

        `outage` is that of the cluster; None: of the node.
        """
        self._topology.want_refresh(failed=node.name)
        translated = node.unavailable(error, outage=outage)
        if isinstance(translated, StoreUnavailable):
            translated.is_partial = len(self._topology.primaries) > 1
        return translated

    async def close(self) -> None:
        """Pending requests fail with `StoreUnavailable`."""
        await asyncio.gather(*(node.close() for node in (*self._nodes.values(), *self._left)))

    def _leave_others(self, _changed: frozenset[int]) -> None:
        self._left = [node for node in self._left if not node.has_left]
        for name in self._nodes.keys() - set(self._topology.primaries):
            node = self._nodes.pop(name)
            node.leave()
            self._left.append(node)

    def _after_connect(self, name: str) -> None:
        self.on_connected(name)

    def _has_slots(self, name: str) -> bool:
        return name in self._topology.primaries

    def _find_fence(self, name: str) -> str:
        # In another slot each time, because a slot that is being moved takes no new keys.
        return self._find_key(self._keys.fence, name, first=next(self._fences) % FENCES)

    def _find_key(self, start: str, name: str, *, first: int = 0) -> str:
        """A key in a slot of the node; one of another node if it has none."""
        for number in range(first, 1 << 17):
            key = f"{start}:{{{number}}}"
            if self._topology.owner(slot_of(key)) == name:
                break
        return key
