"""Fake nodes of a Redis Cluster, with faults that a test chooses.

They know one command, `DO <key> <id>`, which records the id and returns it. A real cluster has the
same faults, but not at the moment and in the order that a test needs.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import groupby
from typing import Final

import hiredis

from gateway.store.handshake import SCHEMA_VERSION
from gateway.store.redis.topology.cluster import slot_of

SLOTS: Final = 16384

UNEXECUTED: Final = {
    "tryagain": b"TRYAGAIN Multiple keys request during rehashing of slot",
    "clusterdown": b"CLUSTERDOWN The cluster is down",
    "loading": b"LOADING Redis is loading the dataset in memory",
    "masterdown": b"MASTERDOWN Link with MASTER is down",
    "readonly": b"READONLY You can't write against a read only replica.",
    "noreplicas": b"NOREPLICAS Not enough good replicas to write.",
    "noscript": b"NOSCRIPT No matching script.",
}
"""Errors after which this node or another one may soon execute the command."""

FINAL: Final = {
    "refused": b"WRONGTYPE Operation against a key holding the wrong kind of value",
    "full": b"OOM command not allowed when used memory > 'maxmemory'.",
}
"""Errors that every node would return."""

BREAKS: Final = ("close", "execute and close", "lose all replies")
"""The node closes the connection: before it executes the command, after that, or after that and
without earlier replies."""


@dataclass(frozen=True, slots=True)
class Fault:
    """What a node does with the next `DO`, if it has the slot."""

    kind: str
    """A key of `UNEXECUTED` or `FINAL`, one of `BREAKS`, or a redirection: `moves`, `lies` (MOVED
    to a node without the slot), `asks` (ASK) or `nowhere` (MOVED without an address)."""
    node: int = 0
    """The target of the redirection. With `moves` it has the slot from then on."""


@dataclass
class FaultyCluster:
    """Three nodes. At first each has a third of the slots."""

    ports: list[int] = field(default_factory=list)
    faults: list[deque[Fault]] = field(default_factory=list)
    executed: list[bytes] = field(default_factory=list)
    """The ids in the order of their execution."""
    connections: dict[asyncio.BaseTransport, int] = field(default_factory=dict)
    """The open connections, each with its node."""
    owners: list[int] = field(default_factory=lambda: [s * 3 // SLOTS for s in range(SLOTS)])

    announced: bytes | None = b"127.0.0.1"
    """The host of all nodes in `CLUSTER SLOTS`."""
    has_slots: bool = True
    handshake: bytes = b"$1\r\n%d\r\n" % SCHEMA_VERSION
    """The reply to the script that checks the schema version."""

    @property
    def url(self) -> str:
        hosts = ",".join(f"127.0.0.1:{port}" for port in self.ports)
        return f"redis+cluster://{hosts}/0"

    def slots(self) -> bytes:
        """The reply to `CLUSTER SLOTS`."""
        if not self.has_slots:
            return b"*0\r\n"
        host = b"$-1" if self.announced is None else _bulk(self.announced)
        runs, start = [], 0
        for owner, run in groupby(self.owners):
            end = start + len(list(run)) - 1
            runs.append(
                b"*3\r\n:%d\r\n:%d\r\n*2\r\n%s\r\n:%d\r\n" % (start, end, host, self.ports[owner])
            )
            start = end + 1
        return b"*%d\r\n%s" % (len(runs), b"".join(runs))


class _Connection(asyncio.Protocol):
    def __init__(self, cluster: FaultyCluster, node: int) -> None:
        self._cluster = cluster
        self._node = node
        self._reader = hiredis.Reader()
        self._was_asked = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._cluster.connections[transport] = self._node

    def connection_lost(self, exc: Exception | None) -> None:
        self._cluster.connections.pop(self._transport, None)

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        replies: list[bytes] = []
        while (command := self._reader.gets()) is not False:
            reply = self._answer(command)
            if reply is None:
                break
            if reply == b"":
                replies = []
                break
            replies.append(reply)
        else:
            self._transport.write(b"".join(replies))
            return
        self._transport.write(b"".join(replies))
        self._transport.close()

    def _answer(self, command: Sequence[bytes]) -> bytes | None:
        """The reply; None: the connection is closed; empty: earlier replies are lost too."""
        name = command[0].upper()
        was_asked, self._was_asked = self._was_asked, name == b"ASKING"
        if name == b"DO":
            return self._do(*command[1:], was_asked=was_asked)
        if name == b"CLUSTER" and command[1].upper() == b"SLOTS":
            return self._cluster.slots()
        if name == b"EVAL":
            return self._cluster.handshake
        return b"+OK\r\n"

    def _do(self, key: bytes, one: bytes, *, was_asked: bool) -> bytes | None:
        cluster, slot = self._cluster, slot_of(key)
        owner = cluster.owners[slot]
        if owner != self._node and not was_asked:
            return self._redirect(b"MOVED", slot, owner)
        faults = cluster.faults[self._node]
        fault = faults.popleft() if faults else Fault("none")
        if fault.kind == "moves":
            cluster.owners[slot] = fault.node
            # The target may be this node, as if the slot had come back meanwhile.
            return self._redirect(b"MOVED", slot, fault.node)
        if fault.kind in ("lies", "asks"):
            code = b"MOVED" if fault.kind == "lies" else b"ASK"
            return self._redirect(code, slot, fault.node)
        if fault.kind == "nowhere":
            return b"-MOVED 99999 ?:0\r\n"
        if fault.kind in UNEXECUTED or fault.kind in FINAL:
            return b"-%s\r\n" % (UNEXECUTED | FINAL)[fault.kind]
        if fault.kind == "close":
            return None
        cluster.executed.append(one)
        if fault.kind in BREAKS:
            return None if fault.kind == "execute and close" else b""
        return _bulk(one) + b"\r\n"

    def _redirect(self, code: bytes, slot: int, node: int) -> bytes:
        return b"-%s %d 127.0.0.1:%d\r\n" % (code, slot, self._cluster.ports[node])


def _bulk(text: bytes) -> bytes:
    return b"$%d\r\n%s" % (len(text), text)


@asynccontextmanager
async def run_faulty_cluster(
    faults: Mapping[int, Sequence[Fault]],
) -> AsyncIterator[FaultyCluster]:
    """Runs three nodes. Each uses up its faults one by one."""
    cluster = FaultyCluster(faults=[deque(faults.get(node, ())) for node in range(3)])
    loop = asyncio.get_running_loop()
    servers = [
        await loop.create_server(lambda node=node: _Connection(cluster, node), "127.0.0.1", 0)  # type: ignore[misc]
        for node in range(3)
    ]
    cluster.ports += [server.sockets[0].getsockname()[1] for server in servers]
    try:
        yield cluster
    finally:
        for server in servers:
            server.close()
        for transport in list(cluster.connections):
            transport.close()
        for server in servers:
            await server.wait_closed()
