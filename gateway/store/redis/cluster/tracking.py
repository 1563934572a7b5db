"""Kept reads of a Redis Cluster: a tracked connection to each primary.

A node reports the writes that it executes itself. So results of a slot are trusted only while the
map says that the node has the slot (`SlotSource`), and dropped when the slot moves. While a slot
is leaving a node, the node cannot report every write: an absent key is created on the other node.
A master that was demoted receives writes by replication, if at all.

So before a process answers an administrator's change, it *announces* the change: it publishes the
names that were written. Every tracked connection is subscribed, and the cluster passes an
announcement on to all nodes. Results of an announced name are dropped at once, and again a moment
later, because a node may still answer reads of a slot that it has just lost.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final, NamedTuple

from redis import exceptions as redis_errors

from gateway.store.kept_reads import ReadMemory
from gateway.store.protocol import Command
from gateway.store.redis.cluster.client import ClusterClient
from gateway.store.redis.commands import RedisCommand, encode
from gateway.store.redis.connection import RawCommand
from gateway.store.redis.faults import CONNECTION_ERRORS
from gateway.store.redis.keys import Keys
from gateway.store.redis.topology.cluster import ClusterMap, slot_of
from gateway.store.redis.topology.single import SingleServer
from gateway.store.redis.tracking import TrackedServer

CHANNEL: Final = "changes"
"""The name of the channel of announcements, among those of flights."""

AGAIN_SECONDS: Final = 0.09
"""When the results of an announced name are dropped again. A node that loses a slot learns of it
from its successor in milliseconds, unless it is cut off."""


class SlotSource:
    """Where results of one slot come from: a node, until it loses the slot or the connection."""

    __slots__ = ("_node", "is_over")

    def __init__(self, node: TrackedNode) -> None:
        self._node = node
        self.is_over = False

    @property
    def is_trusted(self) -> bool:
        """Whether the node can have missed no write, except as the module says."""
        return not self.is_over and self._node.is_trusted

    def now(self) -> float:
        """The clock of the node in Unix seconds."""
        return self._node.now()


class Read(NamedTuple):
    """A read that is to be kept, and the slot of its keys."""

    command: Command[Any]
    encoded: RedisCommand
    slot: int


class TrackedNode(TrackedServer):
    """A primary. Each ping also asks whether it still answers for what was read from it."""

    def __init__(
        self,
        name: str,
        server: SingleServer,
        memory: ReadMemory,
        *,
        keys: Keys,
        topology: ClusterMap,
        on_announced: Callable[[bytes], None],
    ) -> None:
        super().__init__(server, memory, keys=keys)
        self._name = name
        self._topology = topology
        self._on_announced = on_announced
        self._sources: dict[int, SlotSource] = {}
        self._probe_key: str | None = None
        """A key that was read here."""
        self._seen_slots: Any = None
        """The last reply of this node to `CLUSTER SLOTS`."""
        self._has_answered = False
        """Whether it has answered a ping over this connection."""
        self._channel = keys.channel(CHANNEL)
        # The client has checked the schema version of the cluster.
        self._is_reachable.set()
        self._is_needed.set()

    def read(self, reads: Sequence[Read]) -> None:
        """Reads what is not kept yet."""
        if not self.is_trusted:
            return
        fills, encoded = [], []
        for read in reads:
            source = self._sources.get(read.slot)
            if source is None:
                source = self._sources[read.slot] = SlotSource(self)
            if (fill := self._memory.begin(read.command, source)) is not None:
                fills.append(fill)
                encoded.append(read.encoded)
                self._probe_key = read.encoded.keys[0]
        self._send(fills, encoded)

    def lose(self, slots: Collection[int]) -> None:
        """Trusts no results of these slots any more."""
        for slot in self._sources.keys() & slots:
            self._sources.pop(slot).is_over = True

    def end(self) -> None:
        """The node has no slots any more."""
        self.lose(tuple(self._sources))
        self._is_over.set()
        self._outage.ends()

    def _forget(self) -> None:
        self._probe_key = None
        self.lose(tuple(self._sources))
        self._memory.notify_watches()

    def _hear(self, message: bytes) -> None:
        self._on_announced(message)

    async def _run_connection(self) -> None:
        try:
            await super()._run_connection()
        except (*CONNECTION_ERRORS, redis_errors.ResponseError):
            if self._has_answered:
                # It may have a successor. A node that never answered is left to the commands.
                self._topology.want_refresh(failed=self._name)
            raise
        finally:
            self._has_answered = False

    def _questions(self) -> Sequence[RawCommand]:
        slots: RawCommand = (b"CLUSTER", b"SLOTS")
        return [slots] if self._probe_key is None else [slots, (b"EXISTS", self._probe_key)]

    def _judge(self, answers: Sequence[Any]) -> None:
        self._has_answered = True
        slots = answers[0]
        for answer in answers:
            if isinstance(answer, redis_errors.MovedError):
                # A master that was demoted has lost its other slots too.
                self._forget()
                self._follow(answer)
            elif isinstance(answer, redis_errors.AskError):
                pass  # keys of the slot are being moved: the node still has it
            elif isinstance(answer, redis_errors.RedisError):  # of a node that is cut off
                raise answer
        if self._seen_slots not in (None, slots):
            self._topology.want_refresh()
        self._seen_slots = slots

    def _note_refusal(self, command: RedisCommand, reply: redis_errors.RedisError) -> None:
        if isinstance(reply, redis_errors.MovedError):
            self._follow(reply)
        super()._note_refusal(command, reply)

    def _follow(self, moved: redis_errors.MovedError) -> None:
        # A redirection without a host means the host of this node.
        host = moved.host or self._name.rpartition(":")[0]
        self._topology.move(moved.slot_id, f"{host}:{moved.port}")
        self._topology.want_refresh()


class TrackedCluster:
    """Fills the memory from the primaries that own the keys, and announces changes."""

    is_announcing: Final = True

    def __init__(self, client: ClusterClient, memory: ReadMemory, *, keys: Keys) -> None:
        self._client = client
        self._topology = client.topology
        self._memory = memory
        self._keys = keys
        self._channel = keys.channel(CHANNEL)
        self._is_needed = False
        self._nodes: dict[str, TrackedNode] = {}
        self._tasks: dict[TrackedNode, asyncio.Task[None]] = {}
        """Also those of nodes without slots, until they have ended."""
        self._topology.on_changed.append(self._follow)

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Stays connected to the primaries until exit, once something is to be kept."""
        try:
            yield
        finally:
            self._is_needed = False
            tasks = tuple(self._tasks.values())
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def fill(self, commands: Sequence[Command[Any]]) -> None:
        """Reads what is not kept yet."""
        if not self._is_needed:
            self._is_needed = True
            self._follow(frozenset())
        by_node: dict[str, list[Read]] = defaultdict(list)
        for command in commands:
            # By class in the registry, as in `RedisStore`.
            encoded = encode.registry[type(command)](command, self._keys)
            slot = slot_of(encoded.keys[0])
            owner = self._topology.owner(slot)
            if owner in self._nodes:
                by_node[owner].append(Read(command, encoded, slot))
        for name, reads in by_node.items():
            self._nodes[name].read(reads)

    async def announce(self, names: Collection[str]) -> None:
        """Publishes to all processes that these names were written."""
        await self._client.publish(self._channel, "\n".join(names).encode())

    async def find_refusal(self) -> str | None:
        """Why the first node that refuses to track does so; None if none refuses."""
        for name, server in self._client.nodes().items():
            if (refusal := await self._node(name, server).find_refusal()) is not None:
                return f"{name}: {refusal}"
        return None

    def _node(self, name: str, server: SingleServer) -> TrackedNode:
        return TrackedNode(
            name,
            server,
            self._memory,
            keys=self._keys,
            topology=self._topology,
            on_announced=self._hear,
        )

    def _hear(self, message: bytes) -> None:
        names = message.decode("utf-8", "replace").split("\n")
        self._memory.invalidate(names)
        asyncio.get_running_loop().call_later(AGAIN_SECONDS, self._memory.invalidate, names)

    def _follow(self, changed: frozenset[int]) -> None:
        """Drops results of slots that another node has now, and connects to new primaries."""
        for node in self._nodes.values():
            node.lose(changed)
        self._memory.notify_watches()
        if not self._is_needed:
            return
        servers = self._client.nodes()
        for name in self._nodes.keys() - servers.keys():
            node = self._nodes.pop(name)
            node.end()
            self._tasks[node].cancel()
        for name in servers.keys() - self._nodes.keys():
            node = self._nodes[name] = self._node(name, servers[name])
            task = asyncio.create_task(node.stay_connected(), name=f"redis-tracking-{name}")
            self._tasks[node] = task
            task.add_done_callback(partial(self._end_task, node))

    def _end_task(self, node: TrackedNode, _task: asyncio.Task[None]) -> None:
        del self._tasks[node]
