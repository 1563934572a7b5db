"""The client of a Redis Cluster: executes batches, and checks whether the cluster can be used.

`handshake` reads the map and checks the schema version before the first command. `order` divides a
batch into stages, and `stage` executes one of them. `reads` sends a read to all nodes, and `scan`
reads them page by page. `nodes` has the connections.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, cast

from redis import exceptions as redis_errors

from gateway.errors import StoreUnavailable
from gateway.store.handshake import StoreMisconfigured
from gateway.store.redis.client import NodeReplies, NotReached
from gateway.store.redis.cluster.handshake import ClusterHandshake
from gateway.store.redis.cluster.nodes import ClusterMark, ClusterNodes
from gateway.store.redis.cluster.order import find_stages
from gateway.store.redis.cluster.reads import ClusterReads
from gateway.store.redis.cluster.scan import ClusterScan
from gateway.store.redis.cluster.stage import ClusterStage, Routed
from gateway.store.redis.commands.encoding import RedisCommand
from gateway.store.redis.connection import RawCommand
from gateway.store.redis.faults import CONNECTION_ERRORS, Fault, find_fault
from gateway.store.redis.keys import Keys
from gateway.store.redis.rights import CLUSTER_COMMANDS
from gateway.store.redis.scripts import Script
from gateway.store.redis.topology.cluster import ClusterMap, slot_of
from gateway.store.redis.topology.cluster_addresses import ClusterAddresses
from gateway.store.redis.topology.single import SingleServer
from gateway.store.redis.urls import TIMEOUT_SECONDS

MAX_PUBLISHERS: Final = 3
"""Through how many nodes a notification is published."""

TAKEN_OVER: Final = "Another node of the Redis Cluster has taken over while a batch was executed."

PUBLISH_SECONDS: Final = 0.5
"""How long to wait for those that do not answer."""


class ClusterClient:
    """Executes commands on the nodes that have their keys; as `RedisClient`, for a cluster.

    It sends a command again that no node has executed, until the deadline: after a redirection,
    while keys move, and while a replica takes over. It never sends one again that a node may have
    executed.
    """

    def __init__(
        self,
        url: str,
        *,
        keys: Keys,
        scripts: Sequence[Script] = (),
        may_create: bool = True,
        holds_books: bool = False,
    ) -> None:
        self.topology = ClusterMap(url)
        self.location = self.topology.url.location
        self.addresses = ClusterAddresses(self.topology)
        self.on_connected: Callable[[], None] = lambda: None
        self._keys = keys
        self._books_slot = slot_of(keys.books)
        self._nodes = ClusterNodes(
            self.topology,
            keys=keys,
            scripts=scripts,
            holds_books=holds_books,
        )
        self._reads = ClusterReads(self.topology, self._nodes)
        self._handshake = ClusterHandshake(
            self.topology,
            self._nodes,
            location=self.location,
            keys=keys,
            may_create=may_create,
            holds_books=holds_books,
        )

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Connects at the first use; on exit, pending requests fail with `StoreUnavailable`."""
        async with self.topology.open():
            try:
                yield
            finally:
                self._handshake.outage.stop()
                await self._nodes.close()

    # ── what callers need ───────────────────────────────────────────────────────────────────

    async def execute(
        self, commands: Sequence[RawCommand], mark: ClusterMark | None = None
    ) -> list[Any]:
        """As `RedisClient.execute`: each is a command of one key, its first argument.

        They are sent together, and run in order if their keys are in one slot.
        """
        routed = [Routed(each, slot_of(each[1])) for each in commands]  # type: ignore[arg-type]
        deadline = _deadline()
        await self._handshake.prepare(deadline)
        executed = mark.executed if mark is not None else None
        return await self._stage(deadline, executed).execute(routed)

    async def run(
        self, commands: Sequence[RedisCommand], mark: ClusterMark | None = None
    ) -> list[Any]:
        """As `RedisClient.run`: in order. After an error nothing more is sent, and the other
        replies are `NotReached`. A command that has `merge` has `NodeReplies`.
        """
        deadline, executed = _deadline(), mark.executed if mark is not None else None
        await self._handshake.prepare(deadline)
        routed = [Routed(each.command, slot_of(each.keys[0]) if each.keys else None)
                  for each in commands]  # fmt: skip
        replies: list[Any] = [None] * len(commands)
        for stage in find_stages(commands):
            first = commands[stage.start]
            if first.merge is not None:
                for i in stage:
                    found = await self._execute_everywhere(routed[i].command, deadline)
                    replies[i] = NodeReplies(found)
            elif first.cursor_at is not None:
                scan = ClusterScan(self.topology, self._reads, deadline=deadline)
                for i in stage:
                    raw = cast(Sequence[Any], commands[i].command)
                    replies[i] = await scan.read(raw, first.cursor_at)
            else:
                due = routed[stage.start : stage.stop]
                running = self._stage(deadline, executed)
                replies[stage.start : stage.stop] = await running.execute(due)
            for i in stage:
                if isinstance(replies[i], redis_errors.RedisError):
                    # The commands after it may depend on it.
                    replies[stage.stop :] = [NotReached()] * (len(replies) - stage.stop)
                    return replies
        return replies

    is_replicated: Final = True
    """As `RedisClient.is_replicated`."""

    def mark(self) -> ClusterMark:
        """As `RedisClient.mark`. `execute` and `run` need it too."""
        return self._nodes.mark()

    async def confirm(self, mark: Any, keys: Sequence[str]) -> None:
        """As `RedisClient.confirm`, on the nodes that have executed the commands with the keys."""
        executed: set[tuple[int | None, str]] = mark.executed
        names = {name for _, name in executed}
        if not names <= set(self.topology.primaries):
            # Its first replies may be lost by a failover while later commands are still executed.
            raise StoreUnavailable(reason=TAKEN_OVER)
        others = {slot_of(key) for key in keys} - {slot for slot, _ in executed}
        names |= {self._nodes.owner(slot) for slot in others}
        marks = {name: mark.connections.get(name, 1) for name in names}
        try:
            await asyncio.gather(
                *(self._nodes.get(name).confirm(each, keys) for name, each in marks.items())
            )
        except StoreUnavailable:
            self.topology.want_refresh()
            raise

    async def execute_everywhere(self, command: RawCommand) -> list[Any]:
        """The replies of all primaries, that of the books' node first.

        Raises `StoreUnavailable` if one of them is unavailable.
        """
        deadline = _deadline()
        await self._handshake.prepare(deadline)
        return await self._execute_everywhere(command, deadline)

    async def scan(self, command: Sequence[Any], *, cursor_at: int) -> Any:
        """As `RedisClient.scan`, over all primaries one after the other."""
        deadline = _deadline()
        await self._handshake.prepare(deadline)
        return await ClusterScan(self.topology, self._reads, deadline=deadline).read(
            command, cursor_at
        )

    def may_be_on(self, key: bytes, node: str) -> bool:
        """Whether the node has the slot of the key; True if it has no slot of this cluster."""
        return node not in self.topology.primaries or self.topology.owner(slot_of(key)) == node

    async def publish(self, channel: str, message: bytes) -> None:
        """Notifies the subscribers of a channel at all nodes that can be reached.

        It uses several nodes, because one that is cut off from the others may not know that.
        """
        primaries = self.topology.primaries
        names = sorted(primaries, key=lambda name: self._nodes.get(name).is_down)[:MAX_PUBLISHERS]
        command, deadline = (b"PUBLISH", channel, message), _deadline()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PUBLISH_SECONDS):
                await asyncio.gather(
                    *(self._reads.attempt(name, [command], deadline=deadline) for name in names)
                )

    def translate(self, reply: Exception, command: str) -> Exception:
        """As `RedisClient.translate`."""
        return self._nodes.translate(reply, command, outage=self._handshake.outage)

    async def check(
        self, names: Sequence[str], *, subscribe: Callable[[], Awaitable[None]] | None = None
    ) -> None:
        """As `RedisClient.check`, for each primary."""
        deadline = _deadline()
        try:
            async with asyncio.timeout_at(deadline):
                await self.topology.refresh()
        except (*CONNECTION_ERRORS, redis_errors.RedisError) as error:
            raise self._refusal(error) from error
        if not self.topology.is_known:
            raise StoreMisconfigured(f"The Redis Cluster at {self.location} has no slots.")
        for node in self._nodes.primaries().values():
            await node.check((*CLUSTER_COMMANDS, *names), subscribe=None)
        await self._handshake.check_schema(deadline)
        if subscribe is not None:
            try:
                await subscribe()
            except (*CONNECTION_ERRORS, redis_errors.ResponseError) as error:
                raise self._refusal(error) from error

    async def find_wait_refusal(self) -> str | None:
        """As `RedisClient.find_wait_refusal`, of the first primary that refuses."""
        await self._handshake.prepare(_deadline())
        for node in self._nodes.primaries().values():
            if (refusal := await node.find_wait_refusal()) is not None:
                return refusal
        return None

    def nodes(self) -> Mapping[str, SingleServer]:
        """The addresses of the primaries by name, for further connections to each of them.

        `topology.on_changed` says when slots, and so keys, have another node.
        """
        return {name: self._nodes.get(name).server for name in self.topology.primaries}

    # ── a batch ─────────────────────────────────────────────────────────────────────────────

    async def _execute_everywhere(self, command: RawCommand, deadline: float) -> list[Any]:
        return await self._reads.execute_everywhere(
            command, first_slot=self._books_slot, deadline=deadline
        )

    def _stage(
        self, deadline: float, executed: set[tuple[int | None, str]] | None = None
    ) -> ClusterStage:
        return ClusterStage(self.topology, self._nodes, deadline=deadline, executed=executed)

    def _refusal(self, error: Exception) -> Exception:
        """Why the cluster cannot be used, for the start and `doctor`."""
        if "cluster support" in str(error):
            fault: Fault | None = Fault(
                "is a single Redis and no node of a cluster: the URL should begin with redis://.",
                lasts=True,
            )
        else:
            fault = find_fault(
                error,
                user=self.addresses.user,
                prefix=self._keys.prefix,
                is_tls=self.addresses.is_tls,
            )
        if fault is None:
            return self.translate(error, "CLUSTER SLOTS")
        text = f"The Redis at {self.location} {fault.text}"
        return StoreMisconfigured(text) if fault.lasts else StoreUnavailable(reason=text)


def _deadline() -> float:
    return asyncio.get_running_loop().time() + TIMEOUT_SECONDS
