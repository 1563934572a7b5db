"""One stage of a batch in a Redis Cluster: commands that may be executed at the same time.

Each is sent to the node that has its slot. If that node has not executed it, the command is sent
again, there or to another node, until the deadline. A command that may have been executed is never
sent again: the stage fails.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from redis import exceptions as redis_errors

from gateway.store.redis.cluster.node import NodeClient, NotSent
from gateway.store.redis.cluster.nodes import ClusterNodes
from gateway.store.redis.connection import RawCommand
from gateway.store.redis.faults import CONNECTION_ERRORS, NoAddress, code_of
from gateway.store.redis.topology.cluster import ClusterMap
from gateway.store.redis.topology.cluster_url import node_name

ELECTION_SECONDS: Final = 0.1
"""The pause before a command is sent again, if no node could execute it."""

MIGRATION_SECONDS: Final = 0.02
"""The same for keys that are being moved."""

ROUND_SECONDS: Final = 0.2
"""With less time left, nothing is sent again. If it timed out, it would be unknown whether it was
executed, and the reason of the earlier rounds would be lost."""

MAX_REDIRECTIONS: Final = 3
"""After so many rounds with redirections, each is followed by a pause: the nodes disagree."""

UNEXECUTED: Final = ("CLUSTERDOWN", "MASTERDOWN", "READONLY", "LOADING", "NOREPLICAS")
"""Error codes after which the node has executed nothing, but it or its successor soon may."""


@dataclass(frozen=True, slots=True)
class Routed:
    """A command, and the slot of its keys; None: any node can execute it."""

    command: RawCommand
    slot: int | None


class ClusterStage:
    """Sends commands in rounds until each has a reply."""

    def __init__(
        self,
        topology: ClusterMap,
        nodes: ClusterNodes,
        *,
        deadline: float,
        executed: set[tuple[int | None, str]] | None = None,
    ) -> None:
        """`executed` gets the slot of each command and the node that has answered it."""
        self._topology = topology
        self._nodes = nodes
        self._deadline = deadline
        self._executed = executed if executed is not None else set()
        self._pending: list[int] = []
        """Indexes of the commands to send in the next round."""
        self._asked: dict[int, str] = {}
        """The node that is importing the keys of a command, for the next round only."""
        self._pause_seconds = 0.0
        self._reason: tuple[NodeClient, Exception] | None = None
        """Why the last command of the round was not executed."""
        self._may_wait = True
        self._was_redirected = False

    async def execute(self, commands: Sequence[Routed]) -> list[Any]:
        """The replies in order. An error that another node would return too is a reply.

        Raises `StoreUnavailable` at the deadline, or if a command may have been executed.
        """
        replies: list[Any] = [None] * len(commands)
        self._pending = list(range(len(commands)))
        redirections = 0
        while self._pending:
            groups: dict[str, list[int]] = defaultdict(list)
            for i in sorted(self._pending):
                groups[self._asked.get(i) or self._nodes.owner(commands[i].slot)].append(i)
            self._pending, self._pause_seconds, self._was_redirected = [], 0.0, False
            await self._send_groups(groups, commands, replies)
            redirections += self._was_redirected
            if redirections > MAX_REDIRECTIONS:
                self._pause_seconds = max(self._pause_seconds, MIGRATION_SECONDS)
            if self._pending and self._pause_seconds:
                await self._pause()
        return replies

    async def _send_groups(
        self, groups: dict[str, list[int]], commands: Sequence[Routed], replies: list[Any]
    ) -> None:
        sent = [self._send(name, indexes, commands, replies) for name, indexes in groups.items()]
        if len(sent) == 1:
            await sent[0]
            return
        # All of them end before the first error is raised.
        for outcome in await asyncio.gather(*sent, return_exceptions=True):
            if isinstance(outcome, BaseException):
                raise outcome

    async def _pause(self) -> None:
        left_seconds = self._deadline - asyncio.get_running_loop().time()
        is_late = left_seconds < self._pause_seconds + ROUND_SECONDS
        if (is_late or not self._may_wait) and self._reason is not None:
            node, error = self._reason
            raise self._nodes.unavailable(node, error) from error
        await asyncio.sleep(self._pause_seconds)

    async def _send(
        self, name: str, indexes: Sequence[int], commands: Sequence[Routed], replies: list[Any]
    ) -> None:
        """Sends commands to a node; those that it has not executed are pending again."""
        node = self._nodes.get(name)
        asked = {i for i in indexes if self._asked.pop(i, None) is not None}
        raw: list[RawCommand] = []
        for i in indexes:
            if i in asked:
                # Right before the command, on the same connection: ASKING only covers the next one.
                raw.append((b"ASKING",))
            raw.append(commands[i].command)
        try:
            received = iter(await node.send(raw, deadline=self._deadline))
        except NotSent as error:
            self._wait_for_successor(indexes, node, error.error)
            return
        except CONNECTION_ERRORS as error:
            raise self._nodes.unavailable(node, error) from error
        for i in indexes:
            if i in asked:
                next(received)
            replies[i] = reply = next(received)
            if isinstance(reply, redis_errors.RedisError):
                self._judge(i, node, reply, slot=commands[i].slot)
            elif i not in asked or name in self._topology.primaries:
                # Not a node without slots that is importing its first: no fence can be set there.
                self._executed.add((commands[i].slot, name))

    def _judge(
        self, index: int, node: NodeClient, reply: redis_errors.RedisError, *, slot: int | None
    ) -> None:
        """Makes the command pending again if the node has not executed it and another one may."""
        code = code_of(reply)
        if isinstance(reply, redis_errors.AskError):  # or moved
            self._redirect(index, reply, node, slot=slot)
        elif code == "TRYAGAIN":
            self._postpone([index], node, reply, pause_seconds=MIGRATION_SECONDS)
        elif code == "NOSCRIPT":  # twice in a row
            self._postpone([index], node, reply, pause_seconds=ELECTION_SECONDS)
        elif code in UNEXECUTED and slot is not None:
            self._wait_for_successor([index], node, reply)

    def _redirect(
        self, index: int, reply: redis_errors.AskError, node: NodeClient, *, slot: int | None
    ) -> None:
        try:
            # A redirection without a host means the host of this node.
            target = node_name(reply.host or node.name.rpartition(":")[0], reply.port)
        except NoAddress as error:
            self._topology.want_refresh()
            self._postpone([index], node, error, pause_seconds=ELECTION_SECONDS)
            return
        if isinstance(reply, redis_errors.MovedError):
            if slot is not None:
                self._topology.move(slot, target)
            self._topology.want_refresh()
        else:
            self._asked[index] = target
        self._was_redirected = True
        self._postpone([index], node, reply, pause_seconds=0.0)

    def _wait_for_successor(
        self, indexes: Sequence[int], node: NodeClient, error: Exception
    ) -> None:
        self._may_wait = self._may_wait and node.may_wait()
        node.note_down()
        self._topology.want_refresh(failed=node.name)
        self._postpone(indexes, node, error, pause_seconds=ELECTION_SECONDS)

    def _postpone(
        self, indexes: Sequence[int], node: NodeClient, error: Exception, *, pause_seconds: float
    ) -> None:
        self._pending += indexes
        self._pause_seconds = max(self._pause_seconds, pause_seconds)
        self._reason = (node, error)
