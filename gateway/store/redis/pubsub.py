"""Who waits for a publication: one pub/sub connection per process, never one per waiter.

Redis forgets a publication that nobody hears, so nothing here carries news: being woken means
"look again", and everybody is woken when the connection was lost and is back. A waiter also looks
again by itself now and then; without a server a watch is merely slower.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import structlog
from redis import exceptions as faults
from redis.asyncio import ConnectionPool
from redis.asyncio.connection import AbstractConnection

from gateway.store.redis.client import CALL_SECONDS, LOST, running

log = structlog.get_logger(__name__)

_PING_SECONDS: Final = 5.0
"""A connection on which nothing is said is asked for a sign of life this often."""

_SILENT_SECONDS: Final = 11.0
"""Without any word for so long the connection is given up."""

_RECONNECT_SECONDS: Final = 0.25


class RedisWatch:
    """One waiter's bell; see `verbs.Watch`."""

    def __init__(self) -> None:
        self._rung = asyncio.Event()

    async def wait(self, timeout_seconds: float) -> None:
        """Returns after a publication since the last wait, or after the time."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_seconds):
                await self._rung.wait()
        self._rung.clear()

    def wake(self) -> None:
        self._rung.set()

    def forget(self) -> None:
        """Forgets what happened before now."""
        self._rung.clear()


@dataclass(slots=True)
class _Channel:
    """The waiters of one channel, and whether the server is known to tell us of it."""

    watches: set[RedisWatch] = field(default_factory=set)
    is_heard: asyncio.Event = field(default_factory=asyncio.Event)

    def wake(self) -> None:
        for watch in self.watches:
            watch.wake()


class Wakes:
    """Subscribes to the channels that are watched, over one connection that heals by itself."""

    def __init__(self, pool: ConnectionPool) -> None:
        self._pool = pool
        self._channels: dict[bytes, _Channel] = {}
        self._outgoing: asyncio.Queue[tuple[bytes, ...]] = asyncio.Queue()
        self._unconfirmed: Counter[bytes] = Counter()  # subscriptions sent, not yet answered
        self._is_needed = asyncio.Event()
        self._complaint: str | None = None

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """The connection is kept while this is entered, from the first watch on."""
        async with running("redis-wakes", self._keep_connected()):
            yield

    @asynccontextmanager
    async def watch(self, name: str) -> AsyncIterator[RedisWatch]:
        """Entered once the server has confirmed the subscription, or cannot be reached."""
        key, watch = name.encode(), RedisWatch()
        channel = self._join(key)
        channel.watches.add(watch)
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CALL_SECONDS):
                    await channel.is_heard.wait()
            watch.forget()
            yield watch
        finally:
            channel.watches.discard(watch)
            if not channel.watches:
                self._leave(key)

    def _join(self, key: bytes) -> _Channel:
        if key not in self._channels:
            self._channels[key] = _Channel()
            self._subscribe(key)
            self._is_needed.set()
        return self._channels[key]

    def _leave(self, key: bytes) -> None:
        del self._channels[key]
        self._outgoing.put_nowait((b"UNSUBSCRIBE", key))

    def _subscribe(self, key: bytes) -> None:
        self._unconfirmed[key] += 1
        self._outgoing.put_nowait((b"SUBSCRIBE", key))

    async def _keep_connected(self) -> None:
        await self._is_needed.wait()
        while True:
            self._begin_anew()
            try:
                await self._converse()
            except* (*LOST, faults.ResponseError) as lost:
                self._complain(str(lost.exceptions[0]))
            self._release_all()
            await asyncio.sleep(_RECONNECT_SECONDS)

    def _complain(self, reason: str) -> None:
        """Logs a reason once, until a subscription is confirmed again."""
        if reason != self._complaint:
            self._complaint = reason
            log.warning("wakes_lost", reason=reason)

    def _begin_anew(self) -> None:
        """A new connection knows of no subscription."""
        self._outgoing = asyncio.Queue()
        self._unconfirmed.clear()
        for key, channel in self._channels.items():
            channel.is_heard.clear()
            self._subscribe(key)

    def _release_all(self) -> None:
        """Nobody waits for a server that is away: let them in, and let them look again."""
        for channel in self._channels.values():
            channel.is_heard.set()
            channel.wake()

    async def _converse(self) -> None:
        connection = self._pool.make_connection()  # type: ignore[no-untyped-call]
        try:
            async with asyncio.timeout(CALL_SECONDS):
                await connection.connect()
            async with asyncio.TaskGroup() as talk:
                talk.create_task(self._speak(connection))
                talk.create_task(self._listen(connection))
        finally:
            await connection.disconnect(nowait=True)

    async def _speak(self, connection: AbstractConnection) -> None:
        """Only this task writes: a waiter that is cancelled cannot cut a command in two."""
        outgoing = self._outgoing
        while True:
            command: tuple[bytes, ...] = (b"PING",)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_PING_SECONDS):
                    command = await outgoing.get()
            await connection.send_packed_command(connection.pack_command(*command))

    async def _listen(self, connection: AbstractConnection) -> None:
        while True:
            said = await connection.read_response(timeout=_SILENT_SECONDS)
            if said is None:
                raise faults.ConnectionError("nothing heard from the server")
            self._hear(said)

    def _hear(self, said: Any) -> None:
        """Handles [kind, channel, …]; a sign of life is no news."""
        if not isinstance(said, list) or said[0] not in (b"message", b"subscribe"):
            return
        kind, key = said[0], said[1]
        if kind == b"subscribe":
            self._unconfirmed[key] -= 1
            self._complaint = None
        channel = self._channels.get(key)
        if channel is None:
            return
        if kind == b"subscribe" and self._unconfirmed[key] <= 0:
            channel.is_heard.set()
        channel.wake()
