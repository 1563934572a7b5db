"""A Redis with a replica behind one address, which moves from the one to the other.

Connections that were open stay with the old server, as after a change of DNS or of a service's
endpoint.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import redis

from tests.redis_server import run_redis_server
from tests.waiting import until

CHUNK_BYTES = 1 << 16


@dataclass
class Address:
    """Passes connections on to a port that may change; open ones stay where they are."""

    target: int
    port: int = 0
    connections: int = 0
    """How many were accepted."""
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            there = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            writer.close()
            return
        self._writers |= {writer, there[1]}
        await asyncio.gather(_pass_on(reader, there[1]), _pass_on(there[0], writer))
        self._writers -= {writer, there[1]}

    def close_all(self) -> None:
        for writer in self._writers:
            writer.transport.abort()


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(CHUNK_BYTES):
            writer.write(data)
            await writer.drain()
    writer.close()


@dataclass
class RedisPair:
    """A master and its replica, behind `address`."""

    urls: tuple[str, str]
    address: Address

    @property
    def old(self) -> redis.Redis:
        return redis.Redis.from_url(self.urls[0])

    @property
    def new(self) -> redis.Redis:
        return redis.Redis.from_url(self.urls[1])

    def until_in_sync(self) -> None:
        """Waits until the replica has all of the master's writes."""

        def is_in_sync() -> bool:
            with self.old as old, self.new as new:
                here, there = old.info("replication"), new.info("replication")
            is_up = there.get("master_link_status") == "up"
            return is_up and bool(here["master_repl_offset"] == there["slave_repl_offset"])

        until(is_in_sync)

    def demote(self) -> None:
        """`REPLICAOF`: the replica is promoted, and then the master becomes its replica."""
        with self.old as old, self.new as new:
            new.replicaof("NO", "ONE")
            old.replicaof("127.0.0.1", _port(self.urls[1]))

    def demote_in_sync(self) -> None:
        """The same while no write is under way, so that the replica has them all."""
        with self.old as old:
            old.execute_command("CLIENT", "PAUSE", 10_000, "WRITE")
            self.until_in_sync()
            self.demote()
            old.execute_command("CLIENT", "UNPAUSE")

    def fail_over(self) -> None:
        """`FAILOVER`: the master stops writes and waits for its replica, so no write is lost."""
        with self.old as old, self.new as new:
            old.execute_command("FAILOVER")
            until(lambda: new.info("replication")["role"] == "master")

    def move(self) -> None:
        """New connections lead to the new master."""
        self.address.target = _port(self.urls[1])


@asynccontextmanager
async def run_redis_pair(folder: Path) -> AsyncIterator[RedisPair]:
    async with AsyncExitStack() as stack:
        urls = []
        for name in ("one", "two"):
            (folder / name).mkdir(parents=True)
            urls.append(stack.enter_context(run_redis_server(folder / name)))
        with redis.Redis.from_url(urls[0]) as one, redis.Redis.from_url(urls[1]) as two:
            one.config_set("repl-diskless-sync-delay", 0)
            two.config_set("repl-diskless-sync-delay", 0)
            two.replicaof("127.0.0.1", _port(urls[0]))
        address = Address(_port(urls[0]))
        server = await asyncio.start_server(address.accept, "127.0.0.1", 0)
        address.port = server.sockets[0].getsockname()[1]
        pair = RedisPair((urls[0], urls[1]), address)
        pair.until_in_sync()
        try:
            yield pair
        finally:
            server.close()
            address.close_all()
            await server.wait_closed()


def _port(url: str) -> int:
    return int(urlsplit(url).port or 0)
