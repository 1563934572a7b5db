"""Scans over all nodes of a cluster.

A scan reads the primaries in the order of their names. Its cursor names the node, the process there
and the distribution of the slots. Another process has its hash tables in another order. If the
distribution has changed, the scan starts over, because keys may have moved from a node that it had
not read yet to one that it had. While keys move one by one, the distribution stays the same until
the last key has moved. So the scan then reads all nodes twice, which finds every key that moves
once.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Final

from redis import exceptions as redis_errors

from gateway.errors import StoreUnavailable
from gateway.store.redis.cluster.nodes import NO_SLOTS
from gateway.store.redis.cluster.reads import ClusterReads, NodeFailure
from gateway.store.redis.topology.cluster import ClusterMap

_CURSOR: Final = re.compile(r"(\d+) (\d+) ([0-9a-f]+) (\S+) (.*)")

_MOVING: Final = re.compile(rb"\[\d+-[<>]-")
"""A slot whose keys are being moved, in a node's own line of `CLUSTER NODES`."""


@dataclass(frozen=True, slots=True)
class _Position:
    turn: int
    """1, or 2 while the nodes are read a second time."""
    was_moving: int
    """Whether keys were being moved at one of the pages so far."""
    version: str
    """The version of the distribution of the slots."""
    node: str
    cursor: str
    """Within the node."""

    def __str__(self) -> str:
        return f"{self.turn} {self.was_moving} {self.version} {self.node} {self.cursor}"


class ClusterScan:
    """Reads pages until the deadline, a time of the event loop's clock."""

    def __init__(self, topology: ClusterMap, reads: ClusterReads, *, deadline: float) -> None:
        self._topology = topology
        self._reads = reads
        self._deadline = deadline

    async def read(self, command: Sequence[Any], cursor_at: int) -> Any:
        """The reply to a scan with such a cursor: the next one, `0` at the end, and what it found.

        An error of the node, such as one of its ACL, is the reply. Raises `StoreUnavailable`, which
        names the node, if neither it nor a successor answers.
        """
        found = command[cursor_at]
        cursor = found.decode() if isinstance(found, bytes) else str(found)
        while True:
            # In the loop, because a scan starts over once a replica has taken over.
            position = self._continue(cursor)
            scan = (*command[:cursor_at], position.cursor, *command[cursor_at + 1 :])
            replies = await self._reads.attempt(
                position.node, [scan, (b"CLUSTER", b"NODES")], deadline=self._deadline
            )
            if not isinstance(replies, NodeFailure):
                break
            await self._reads.pause([replies], deadline=self._deadline)
        page, nodes = replies
        if isinstance(page, redis_errors.RedisError):
            return page
        if isinstance(nodes, bytes) and _MOVING.search(nodes):
            position = replace(position, was_moving=1)
        following: _Position | None = replace(position, cursor=page[0].decode())
        if page[0] == b"0":
            following = await self._after(position)
        return [b"0" if following is None else str(following).encode(), *page[1:]]

    def _start(self) -> _Position:
        if not self._topology.primaries:
            raise StoreUnavailable(reason=NO_SLOTS)
        return _Position(1, 0, self._topology.version, self._topology.primaries[0], "0")

    def _continue(self, after: str) -> _Position:
        match = _CURSOR.fullmatch(after)
        if match is None or match[3] != self._topology.version:
            return self._start()
        position = _Position(int(match[1]), int(match[2]), match[3], match[4], match[5])
        # Cursors are also kept in the store, so the node may not exist.
        return position if position.node in self._topology.primaries else self._start()

    async def _after(self, position: _Position) -> _Position | None:
        """The start of the next node; None after the last one."""
        # Requests may not have noticed yet that slots have moved.
        with suppress(redis_errors.RedisError, OSError):
            async with asyncio.timeout_at(self._deadline):
                await self._topology.refresh()
        names = self._topology.primaries
        if position.version != self._topology.version:
            return self._start()
        following = names.index(position.node) + 1
        if following < len(names):
            return replace(position, node=names[following], cursor="0")
        if position.was_moving and position.turn == 1:
            return replace(position, turn=2, node=names[0], cursor="0")
        return None
