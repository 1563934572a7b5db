"""A Redis Cluster: one connection per node, and redirections.

`topology.cluster` knows which node has which slot, `node` is one node, `order` says what may be
executed at the same time, and `cluster_scan` reads all nodes page by page.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, cast

from redis import exceptions as redis_errors

from gateway.errors import StoreUnavailable
from gateway.store.handshake import (
    SCHEMA_VERSION,
    SchemaMismatch,
    StoreMisconfigured,
    StoreMissing,
)
from gateway.store.redis.client import NodeReplies, NotReached, schema_mismatch_refusal
from gateway.store.redis.cluster_scan import ClusterScan
from gateway.store.redis.commands.encoding import RedisCommand
from gateway.store.redis.connection import RawCommand
from gateway.store.redis.faults import CONNECTION_ERRORS, Fault, code_of, find_fault
from gateway.store.redis.keys import Keys
from gateway.store.redis.node import NodeClient, NotSent
from gateway.store.redis.order import find_stages
from gateway.store.redis.rights import CLUSTER_COMMANDS
from gateway.store.redis.scripts import SCRIPTS, Script
from gateway.store.redis.topology.cluster import ClusterMap, address_of, slot_of
from gateway.store.redis.topology.cluster_addresses import ClusterAddresses
from gateway.store.redis.topology.single import SingleServer
from gateway.store.redis.urls import TIMEOUT_SECONDS

ELECTION_SECONDS: Final = 0.1
"""The pause before a command is sent again that no node could execute."""

MIGRATION_SECONDS: Final = 0.02
"""The same for keys that are being moved."""

MAX_REDIRECTIONS: Final = 3
"""After so many in a row, a pause: the nodes do not agree yet."""

_UNEXECUTED: Final = ("CLUSTERDOWN", "MASTERDOWN", "READONLY", "LOADING", "NOREPLICAS")
"""Codes of a node that has executed nothing, though it or its successor may soon."""


@dataclass(frozen=True, slots=True)
class Routed:
    """A command, and the slot of its keys; None: any node can execute it."""

    command: RawCommand
    slot: int | None


@dataclass(slots=True)
class _Pending:
    """The commands of a stage that have no reply yet."""

    indexes: list[int]
    asked: dict[int, str] = field(default_factory=dict)
    """The nodes that are importing the keys of a command, until the next attempt."""
    redirections: int = 0
    pause_seconds: float = 0.0
    reason: tuple[NodeClient, Exception] | None = None
    may_wait: bool = True


class ClusterClient:
    """Executes commands on the nodes that have their keys; as `RedisClient`, for a cluster.

    Commands that no node has executed are sent again until the deadline: after a redirection, while
    keys move, and while a replica takes over. Those that may have been executed are not.
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
        self._scripts = scripts
        self._may_create = may_create
        self._holds_books = holds_books
        self._schema_slot = slot_of(keys.schema)
        self._books_slot = slot_of(keys.books)
        self._has_schema = False
        self._checking_schema = asyncio.Lock()
        self._nodes: dict[str, NodeClient] = {}
        self._left: list[NodeClient] = []
        self.topology.on_changed.append(self._leave_others)

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Connects at the first use; on exit, pending requests fail with `StoreUnavailable`."""
        async with self.topology.open():
            try:
                yield
            finally:
                for node in (*self._nodes.values(), *self._left):
                    await node.close()

    # ── what callers need ───────────────────────────────────────────────────────────────────

    async def execute(self, commands: Sequence[RawCommand]) -> list[Any]:
        """As `RedisClient.execute`: each is a command of one key, its first argument.

        They are sent together, and run in order if their keys are in one slot.
        """
        routed = [Routed(each, slot_of(each[1])) for each in commands]  # type: ignore[arg-type]
        deadline = _deadline()
        await self._prepare(deadline)
        replies: list[Any] = [None] * len(commands)
        await self._execute_stage(routed, range(len(commands)), replies, deadline)
        return replies

    async def run(self, commands: Sequence[RedisCommand]) -> list[Any]:
        """As `RedisClient.run`: in order. After an error nothing more is sent, and the other
        replies are `NotReached`. A command that has `merge` has `NodeReplies`.
        """
        deadline = _deadline()
        await self._prepare(deadline)
        routed = [Routed(each.command, slot_of(each.keys[0]) if each.keys else None)
                  for each in commands]  # fmt: skip
        replies: list[Any] = [None] * len(commands)
        for stage in find_stages(commands):
            first = commands[stage.start]
            if first.merge is not None:
                for i in stage:
                    replies[i] = await self._execute_everywhere(routed[i].command, deadline)
            elif first.cursor_at is not None:
                scan = ClusterScan(self.topology, self._execute_on)
                for i in stage:
                    raw = cast(Sequence[Any], commands[i].command)
                    replies[i] = await scan.read(raw, first.cursor_at)
            else:
                await self._execute_stage(routed, stage, replies, deadline)
            for i in stage:
                if isinstance(replies[i], redis_errors.RedisError):
                    # What follows needs it.
                    replies[stage.stop :] = [NotReached()] * (len(replies) - stage.stop)
                    return replies
        return replies

    async def execute_everywhere(self, command: RawCommand) -> list[Any]:
        """The replies of all primaries, that of the books' node first.

        Raises `StoreUnavailable` if one of them is unavailable.
        """
        deadline = _deadline()
        await self._prepare(deadline)
        return list((await self._execute_everywhere(command, deadline)).replies)

    async def scan(self, command: Sequence[Any], *, cursor_at: int) -> Any:
        """As `RedisClient.scan`, over all primaries one after the other."""
        await self._prepare(_deadline())
        return await ClusterScan(self.topology, self._execute_on).read(command, cursor_at)

    def translate(self, reply: Exception, command: str) -> Exception:
        """As `RedisClient.translate`."""
        return self._any_node().translate(reply, command)

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
        for name, slot in self.topology.slots().items():
            node = self._node(name)
            node.probe_key = self._probe_key(name, slot)
            await node.check((*CLUSTER_COMMANDS, *names), subscribe=None)
        await self._check_schema(deadline)
        if subscribe is not None:
            try:
                await subscribe()
            except (*CONNECTION_ERRORS, redis_errors.ResponseError) as error:
                raise self._refusal(error) from error

    def nodes(self) -> Mapping[str, SingleServer]:
        """The addresses of the primaries by name, for further connections to each of them.

        `topology.on_changed` says when slots, and so keys, have another node.
        """
        return {name: self._node(name).server for name in self.topology.primaries}

    # ── a batch ─────────────────────────────────────────────────────────────────────────────

    async def _execute_everywhere(self, command: RawCommand, deadline: float) -> NodeReplies:
        books = self.topology.owner(self._books_slot)
        names = sorted(self.topology.primaries, key=lambda name: name != books)
        replies = await asyncio.gather(
            *(self._execute_on(name, [command], deadline=deadline) for name in names)
        )
        return NodeReplies([reply for (reply,) in replies])

    async def _execute_on(
        self,
        name: str,
        commands: Sequence[RawCommand],
        *,
        deadline: float | None = None,
    ) -> list[Any]:
        """Executes commands without keys on one node. Raises `StoreUnavailable`."""
        node = self._node(name)
        try:
            replies = await node.send(commands, deadline=deadline or _deadline())
        except NotSent as error:
            raise self._unavailable(node, error.error) from error
        except CONNECTION_ERRORS as error:
            raise self._unavailable(node, error) from error
        for reply in replies:
            if isinstance(reply, redis_errors.RedisError) and code_of(reply) in _UNEXECUTED:
                raise self._unavailable(node, reply) from reply
        return replies

    async def _execute_stage(
        self, commands: Sequence[Routed], stage: range, replies: list[Any], deadline: float
    ) -> None:
        pending = _Pending(list(stage))
        loop = asyncio.get_running_loop()
        while pending.indexes:
            groups: dict[str, list[int]] = defaultdict(list)
            for i in pending.indexes:
                groups[pending.asked.get(i) or self._owner(commands[i].slot)].append(i)
            pending.indexes, pending.pause_seconds = [], 0.0
            sent = [
                self._send(name, indexes, commands, replies=replies, pending=pending,
                           deadline=deadline)
                for name, indexes in groups.items()
            ]  # fmt: skip
            if len(sent) == 1:
                await sent[0]
            else:
                # All of them end before the first error is raised.
                for outcome in await asyncio.gather(*sent, return_exceptions=True):
                    if isinstance(outcome, BaseException):
                        raise outcome
            if not pending.indexes:
                return
            pending.indexes.sort()
            if pending.redirections > MAX_REDIRECTIONS:
                pending.pause_seconds = max(pending.pause_seconds, MIGRATION_SECONDS)
            if pending.pause_seconds:
                is_late = loop.time() + pending.pause_seconds >= deadline
                if (is_late or not pending.may_wait) and pending.reason is not None:
                    node, error = pending.reason
                    raise self._unavailable(node, error) from error
                await asyncio.sleep(pending.pause_seconds)

    async def _send(
        self,
        name: str,
        indexes: Sequence[int],
        commands: Sequence[Routed],
        *,
        replies: list[Any],
        pending: _Pending,
        deadline: float,
    ) -> None:
        """Sends commands to a node; those that it has not executed are pending again."""
        node = self._node(name)
        raw: list[RawCommand] = []
        for i in indexes:
            # Right before the command, on the same connection: it holds for the next one alone.
            raw += [(b"ASKING",), commands[i].command] if i in pending.asked else [
                commands[i].command
            ]  # fmt: skip
        try:
            received = iter(await node.send(raw, deadline=deadline))
        except NotSent as error:
            self._postpone(pending, indexes, node, error.error, ELECTION_SECONDS)
            return
        except CONNECTION_ERRORS as error:
            raise self._unavailable(node, error) from error
        for i in indexes:
            if pending.asked.pop(i, None) is not None:
                next(received)
            reply = next(received)
            if not isinstance(reply, redis_errors.RedisError) or not self._resend(
                i, reply, node, name=name, pending=pending, slot=commands[i].slot
            ):
                replies[i] = reply

    def _resend(
        self,
        index: int,
        reply: redis_errors.RedisError,
        node: NodeClient,
        *,
        name: str,
        pending: _Pending,
        slot: int | None,
    ) -> bool:
        """Whether the node has not executed the command, so that it is pending again."""
        if isinstance(reply, redis_errors.AskError):  # or moved
            # Without a host, it is the one of the node that says so.
            host = reply.host or name.rpartition(":")[0]
            target = f"{host}:{reply.port}"
            if isinstance(reply, redis_errors.MovedError):
                self.topology.move(reply.slot_id, target)
                self.topology.want_refresh()
            else:
                pending.asked[index] = target
            pending.indexes.append(index)
            pending.redirections += 1
            pending.reason = (node, reply)
            return True
        code = code_of(reply)
        if code == "TRYAGAIN":
            self._postpone(pending, [index], node, reply, MIGRATION_SECONDS, is_down=False)
            return True
        if code in _UNEXECUTED and slot is not None:
            self._postpone(pending, [index], node, reply, ELECTION_SECONDS)
            return True
        return False

    def _postpone(
        self,
        pending: _Pending,
        indexes: Sequence[int],
        node: NodeClient,
        error: Exception,
        pause_seconds: float,
        *,
        is_down: bool = True,
    ) -> None:
        pending.indexes += indexes
        pending.pause_seconds = max(pending.pause_seconds, pause_seconds)
        pending.reason = (node, error)
        if is_down:
            pending.may_wait = pending.may_wait and node.may_wait()
            node.note_down()
            self.topology.want_refresh(failed=node.name)

    # ── nodes ───────────────────────────────────────────────────────────────────────────────

    def _owner(self, slot: int | None) -> str:
        name = self.topology.owner(slot if slot is not None else self._schema_slot)
        # A node without the slot redirects, or says that the cluster is down.
        return name or self.topology.primaries[0]

    def _node(self, name: str) -> NodeClient:
        node = self._nodes.get(name)
        if node is None:
            server = SingleServer(self.topology.url.node_url(address_of(name)))
            node = self._nodes[name] = NodeClient(
                server,
                name=name,
                keys=self._keys,
                scripts=self._scripts,
                holds_books=self._holds_books,
            )
            node.on_connected = partial(self._after_connect, name)
        return node

    def _any_node(self) -> NodeClient:
        names = self.topology.primaries or [
            f"{one.host}:{one.port}" for one in self.topology.url.hosts
        ]
        return self._node(names[0])

    def _after_connect(self, name: str) -> None:
        # The node may have been replaced, and its data with it.
        if self.topology.owner(self._schema_slot) == name:
            self._has_schema = False

    def _leave_others(self, _changed: frozenset[int]) -> None:
        """Leaves the nodes that have no slots any more."""
        for name in self._nodes.keys() - set(self.topology.primaries):
            node = self._nodes.pop(name)
            node.leave()
            self._left = [each for each in self._left if not each.has_left] + [node]

    def _probe_key(self, name: str, slot: int) -> str:
        """A key in a slot of the node."""
        for number in range(1 << 17):
            key = f"{self._keys.probe}:{{{number}}}"
            if self.topology.owner(slot_of(key)) == name:
                return key
        raise AssertionError(f"no key for the slot {slot}")

    # ── the cluster as a whole ──────────────────────────────────────────────────────────────

    async def _prepare(self, deadline: float) -> None:
        """Reads the map, and checks the schema version, before anything else."""
        if not self.topology.is_known:
            try:
                async with asyncio.timeout_at(deadline):
                    await self.topology.refresh()
            except (*CONNECTION_ERRORS, redis_errors.RedisError) as error:
                raise self._unavailable(self._any_node(), error) from error
            if not self.topology.is_known:
                raise StoreUnavailable(reason="The Redis Cluster has no slots.")
        if not self._has_schema:
            try:
                await self._check_schema(deadline)
            except SchemaMismatch as error:
                raise schema_mismatch_refusal(error) from error

    async def _check_schema(self, deadline: float) -> None:
        async with self._checking_schema:
            if self._has_schema:
                return
            source, version = SCRIPTS["handshake"].source, str(SCHEMA_VERSION).encode()
            schema_key = self._keys.schema.encode()
            command = (b"EVAL", source, b"1", schema_key, version, b"%d" % self._may_create)
            replies: list[Any] = [None]
            await self._execute_stage(
                [Routed(command, self._schema_slot)], range(1), replies, deadline
            )
            (found,) = replies
            if isinstance(found, redis_errors.RedisError):
                raise self.translate(found, "the handshake") from found
            if found is None:
                raise StoreMissing(self.location)
            if found != version:
                raise SchemaMismatch(self.location, str(found, errors="replace"))
            self._has_schema = True

    def _unavailable(self, node: NodeClient, error: Exception) -> Exception:
        self.topology.want_refresh(failed=node.name)
        translated = node.unavailable(error)
        if isinstance(translated, StoreUnavailable):
            translated.is_partial = len(self.topology.primaries) > 1
        return translated

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
