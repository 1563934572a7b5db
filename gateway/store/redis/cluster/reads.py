"""Reads without keys, from one node of a Redis Cluster or from all of them.

While a replica takes over from a node, this module sends them again until the deadline. That is
safe although the node may have executed them, because they write nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from redis import exceptions as redis_errors

from gateway.errors import StoreUnavailable
from gateway.store.redis.cluster.node import NodeClient, NotSent
from gateway.store.redis.cluster.nodes import NO_SLOTS, ClusterNodes
from gateway.store.redis.cluster.stage import ELECTION_SECONDS, ROUND_SECONDS, UNEXECUTED
from gateway.store.redis.connection import RawCommand
from gateway.store.redis.faults import CONNECTION_ERRORS, code_of
from gateway.store.redis.topology.cluster import ClusterMap


@dataclass(frozen=True, slots=True)
class NodeFailure:
    """A node could not be read from."""

    node: NodeClient
    error: Exception


class ClusterReads:
    """Sends reads to nodes. Deadlines are times of the event loop's clock."""

    def __init__(self, topology: ClusterMap, nodes: ClusterNodes) -> None:
        self._topology = topology
        self._nodes = nodes

    async def execute_everywhere(
        self, command: RawCommand, *, first_slot: int, deadline: float
    ) -> list[Any]:
        """The replies of all primaries, that of the node with `first_slot` first.

        Raises `StoreUnavailable`, which names a node that did not answer.
        """
        replies: dict[str, Any] = {}
        while True:
            first = self._topology.owner(first_slot)
            names = sorted(self._topology.primaries, key=lambda name: name != first)
            if not names:
                raise StoreUnavailable(reason=NO_SLOTS)
            due = [name for name in names if name not in replies]
            if not due:
                return [replies[name] for name in names]
            outcomes = await asyncio.gather(
                *(self.attempt(name, [command], deadline=deadline) for name in due)
            )
            failures = [each for each in outcomes if isinstance(each, NodeFailure)]
            for name, outcome in zip(due, outcomes, strict=True):
                if not isinstance(outcome, NodeFailure):
                    (replies[name],) = outcome
            if failures:
                await self.pause(failures, deadline=deadline)

    async def attempt(
        self, name: str, commands: Sequence[RawCommand], *, deadline: float
    ) -> list[Any] | NodeFailure:
        """The replies of one node, or why there are none."""
        node = self._nodes.get(name)
        try:
            replies = await node.send(commands, deadline=deadline)
        except NotSent as error:
            return NodeFailure(node, error.error)
        except CONNECTION_ERRORS as error:
            return NodeFailure(node, error)
        for reply in replies:
            if isinstance(reply, redis_errors.RedisError) and code_of(reply) in UNEXECUTED:
                return NodeFailure(node, reply)
        return replies

    async def pause(self, failures: Sequence[NodeFailure], *, deadline: float) -> None:
        """Waits for the nodes or their successors, and has the map read meanwhile.

        Raises `StoreUnavailable` if the deadline is near, or if a node has been down for too long.
        """
        may_wait = all(failure.node.may_wait() for failure in failures)
        for failure in failures:
            failure.node.note_down()
            self._topology.want_refresh(failed=failure.node.name)
        left_seconds = deadline - asyncio.get_running_loop().time()
        is_late = left_seconds < ELECTION_SECONDS + ROUND_SECONDS
        if is_late or not may_wait:
            first = failures[0]
            raise self._nodes.unavailable(first.node, first.error) from first.error
        await asyncio.sleep(ELECTION_SECONDS)
