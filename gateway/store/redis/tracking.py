"""Kept reads of one Redis server, by server-assisted client-side caching (`CLIENT TRACKING`).

The server remembers which keys this connection has read, and pushes the name of each one that is
written. Reads and pushes share the connection, so they come in the order in which the server made
them. A key that a script reads is tracked if it is declared.

The connection leads to the server that takes the commands. It is pinged every second with `TIME`,
which also reads the server's clock. When it is lost, everything that was read over it is dropped.
For the nodes of a cluster see `cluster.tracking`.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final, Protocol

import structlog
from redis import exceptions as redis_errors

from gateway.conditions import Condition
from gateway.store.kept_reads import Fill, ReadMemory
from gateway.store.protocol import Command
from gateway.store.redis.commands import encode
from gateway.store.redis.commands.encoding import SECOND, RedisCommand
from gateway.store.redis.connection import RawCommand
from gateway.store.redis.faults import CONNECTION_ERRORS
from gateway.store.redis.keys import Keys
from gateway.store.redis.topology.addresses import Addresses, connect_to_current
from gateway.store.redis.tracked_connection import TrackedConnection, TrackingRefused
from gateway.store.redis.urls import TIMEOUT_SECONDS

PING_SECONDS: Final = 1.0

TRUSTED_SECONDS: Final = 2.0
"""How long results are trusted, from the sending of the last ping that was answered."""

RECONNECT_SECONDS: Final = 0.1
"""The pause before another attempt after the connection was lost."""

REFUSED_SECONDS: Final = 60.0
"""The pause after the server refused to track. An operator has to change something first."""

log = structlog.get_logger(__name__)


class TrackedServer:
    """The source of the kept reads of one server; see `kept_reads.Source`."""

    is_announcing: Final = False
    """The server itself reports writes to other processes."""

    def __init__(self, addresses: Addresses, memory: ReadMemory, *, keys: Keys) -> None:
        self._addresses = addresses
        self._memory = memory
        self._keys = keys
        self._time: Callable[[], float] = time.monotonic
        """The clock of the event loop."""
        self._channel: str | None = None
        """A channel to subscribe to; `_hear` gets its messages."""
        self._connection: TrackedConnection | None = None
        self._trusted_until = 0.0
        self._ahead_seconds = 0.0
        """The server's clock less the event loop's."""
        self._is_needed = asyncio.Event()
        self._is_reachable = asyncio.Event()
        self._is_over = asyncio.Event()
        """The connection is lost, or leads to the wrong server. Each connection has its own."""
        self._is_replaced = asyncio.Event()
        """The commands have a new connection since the last attempt."""
        fields = {"store": addresses.location}
        self._outage = Condition(log, "tracking_lost", "tracking_works", fields=fields)

    @property
    def is_trusted(self) -> bool:
        """Whether the server has reported every write, as far as the last ping shows."""
        connection = self._connection
        is_connected = connection is not None and connection.is_open
        return is_connected and not self._is_over.is_set() and self._time() < self._trusted_until

    def now(self) -> float:
        """The server's clock in Unix seconds, by the last ping."""
        return self._ahead_seconds + self._time()

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Stays connected until exit, once something is to be kept."""
        task = asyncio.create_task(self.stay_connected(), name="redis-tracking")
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def reconnect(self) -> None:
        """The commands have a new connection, which may lead to another server."""
        self._is_reachable.set()
        self._is_replaced.set()
        self._is_over.set()

    def fill(self, commands: Sequence[Command[Any]]) -> None:
        """Reads what is not kept yet."""
        self._is_needed.set()
        if not self.is_trusted:
            return
        fills = [fill for command in commands if (fill := self._memory.begin(command, self))]
        # By class in the registry, as in `RedisStore`.
        self._send(
            fills, [encode.registry[type(fill.command)](fill.command, self._keys) for fill in fills]
        )

    async def announce(self, names: Collection[str]) -> None:
        """Does nothing: see `is_announcing`."""

    async def find_refusal(self) -> str | None:
        """Why the server refuses to track, over a new connection; None if it does not refuse."""
        try:
            connection = await self._connect(on_lost=lambda: None)
        except (*CONNECTION_ERRORS, redis_errors.ResponseError):
            return None
        try:
            await self._track(connection)
        except TrackingRefused as refusal:
            return str(refusal)
        except (*CONNECTION_ERRORS, redis_errors.ResponseError):
            return None
        finally:
            connection.abort(redis_errors.ConnectionError("the check has ended"))
        return None

    def _send(self, fills: Sequence[Fill], encoded: Sequence[RedisCommand]) -> None:
        connection = self._connection
        if connection is not None and fills:
            deadline = self._time() + TIMEOUT_SECONDS
            sent = connection.send([each.command for each in encoded], deadline=deadline)
            sent.add_done_callback(partial(self._end_fills, fills, encoded))

    def _end_fills(
        self,
        fills: Sequence[Fill],
        encoded: Sequence[RedisCommand],
        sent: asyncio.Future[list[Any]],
    ) -> None:
        has_failed = sent.cancelled() or sent.exception() is not None
        replies = [None] * len(fills) if has_failed else sent.result()
        for fill, command, reply in zip(fills, encoded, replies, strict=True):
            if has_failed or isinstance(reply, redis_errors.RedisError):
                self._memory.end(fill)
            else:
                self._memory.end(fill, command.read(reply))
            if isinstance(reply, redis_errors.RedisError):
                self._note_refusal(command, reply)

    def _note_refusal(self, command: RedisCommand, reply: redis_errors.RedisError) -> None:
        """A read that was to be kept has failed."""
        # The connection of the commands loads the scripts. The server may have lost them since.
        if isinstance(reply, redis_errors.NoScriptError) and command.script and self._connection:
            load = (b"SCRIPT", b"LOAD", command.script.source)
            loaded = self._connection.send([load], deadline=self._time() + TIMEOUT_SECONDS)
            loaded.add_done_callback(_drop)

    def _forget(self) -> None:
        """Forgets everything that was read over the connection."""
        self._memory.forget(self)

    def _hear(self, message: bytes) -> None:
        """Handles a message of the channel."""

    # ── the connection ──────────────────────────────────────────────────────────────────────

    async def stay_connected(self) -> None:
        """Connects again and again, once something is to be kept."""
        self._time = asyncio.get_running_loop().time
        await self._is_needed.wait()
        while True:
            # A handshake must have checked the server first.
            await self._is_reachable.wait()
            self._is_replaced.clear()
            pause = RECONNECT_SECONDS
            try:
                await self._run_connection()
            except TrackingRefused as refusal:
                pause = REFUSED_SECONDS
                self._outage.occurs("refused", reason=f"the server refuses it: {refusal}")
            except (*CONNECTION_ERRORS, redis_errors.ResponseError) as error:
                reason = str(error) or type(error).__name__
                self._outage.occurs(reason, reason=reason)
            # `reconnect` ends the pause: the commands may have found a server that can be used. The
            # loss of this connection, which is reported only now, does not.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._is_replaced.wait()

    async def _run_connection(self) -> None:
        """Connects, and pings until the connection is lost or leads to the wrong server."""
        is_over = self._is_over = asyncio.Event()
        connection = await self._connect(on_lost=is_over.set)
        try:
            await self._track(connection)
            while not is_over.is_set():
                await self._ping(connection)
                if self._connection is None:
                    self._connection = connection
                    self._outage.ends()
                    # So that those who watch a result read it over this connection.
                    self._forget()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(PING_SECONDS):
                        await is_over.wait()
            if not connection.is_open:
                raise redis_errors.ConnectionError("the server has closed the connection")
        finally:
            self._connection = None
            self._forget()
            connection.abort(redis_errors.ConnectionError("the connection is over"))

    async def _connect(self, *, on_lost: Callable[[], None]) -> TrackedConnection:
        opened = await connect_to_current(self._addresses)
        return TrackedConnection(
            opened, on_invalidated=self._invalidate, on_lost=on_lost, on_announced=self._hear
        )

    async def _track(self, connection: TrackedConnection) -> None:
        await connection.track(deadline=self._time() + TIMEOUT_SECONDS, channel=self._channel)

    async def _ping(self, connection: TrackedConnection) -> None:
        sent_at = self._time()
        questions = [(b"TIME",), *self._questions()]
        found, *answers = await connection.execute(questions, deadline=sent_at + TIMEOUT_SECONDS)
        if isinstance(found, redis_errors.RedisError):
            raise found
        self._judge(answers)
        seconds, microseconds = found
        self._ahead_seconds = int(seconds) + int(microseconds) / SECOND - self._time()
        self._trusted_until = sent_at + TRUSTED_SECONDS

    def _questions(self) -> Sequence[RawCommand]:
        """Further commands of each ping."""
        return ()

    def _judge(self, answers: Sequence[Any]) -> None:
        """Raises redis-py's errors if the replies to `_questions` show a server not to trust."""

    def _invalidate(self, keys: Sequence[bytes] | None) -> None:
        if keys is None:  # all keys were deleted
            self._forget()
        else:
            self._memory.invalidate(map(self._keys.name_of, keys))


def _drop(sent: asyncio.Future[list[Any]]) -> None:
    """Retrieves an error that nothing depends on, because asyncio would log it."""
    if not sent.cancelled():
        sent.exception()


class Tracked(Protocol):
    """Fills a memory, and announces changes to others: `TrackedServer` or `TrackedCluster`."""

    @property
    def is_announcing(self) -> bool:
        """Whether `announce` does anything."""

    def fill(self, commands: Sequence[Command[Any]]) -> None:
        """Reads what is not kept yet."""

    async def announce(self, names: Collection[str]) -> None:
        """Reports a write to other processes, if the store does not."""

    async def find_refusal(self) -> str | None:
        """Why a server refuses to track; None if none refuses."""


class RedisKeptReads:
    """The `protocol.KeptReads` of a server or a cluster."""

    def __init__(self, memory: ReadMemory, tracked: Tracked) -> None:
        self._memory = memory
        self._tracked = tracked

    def find(self, commands: Sequence[Command[Any]]) -> list[Any] | None:
        """The results, if all of them are kept and hold now."""
        return self._memory.find_all(commands)

    def fill(self, commands: Sequence[Command[Any]]) -> None:
        """Reads what is not kept yet."""
        self._tracked.fill(commands)

    def watch(self, command: Command[Any], notify: Callable[[], None]) -> None:
        """Calls `notify` when the result of `command` may have changed."""
        self._memory.watch(command, notify)

    async def find_refusal(self) -> str | None:
        """Why a server refuses to track; None if none refuses."""
        return await self._tracked.find_refusal()
