"""The store in Redis."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from typing import Any, Final

from redis.exceptions import RedisError

from gateway.calendar import UTC_CALENDAR, Calendar
from gateway.errors import StoreUnavailable
from gateway.store.kept_reads import WRITERS, ReadMemory, names_written
from gateway.store.protocol import Command, KeptReads, Watch
from gateway.store.redis.client import RedisClient
from gateway.store.redis.commands import RedisCommand, encode
from gateway.store.redis.keys import DEFAULT_PREFIX, Keys
from gateway.store.redis.pubsub import Notifications
from gateway.store.redis.rights import SCRIPT_COMMANDS, STORE_COMMANDS
from gateway.store.redis.scripts import SCRIPTS
from gateway.store.redis.topology.opening import find_addresses
from gateway.store.redis.tracking import RedisKeptReads, TrackedServer
from gateway.store.redis.windows import CurrentWindows, is_wrong_calendar

CALENDAR_ATTEMPTS: Final = 3
"""How often a command is sent whose calendar the server's clock has left."""


class RedisStore:
    """A `protocol.Store` in one Redis server, opened by `open_redis_store`."""

    def __init__(
        self,
        name: str,
        *,
        keys: Keys,
        client: RedisClient,
        notifications: Notifications,
        windows: CurrentWindows,
        memory: ReadMemory,
        kept: KeptReads,
    ) -> None:
        self.name = name
        self.kept = kept
        self._memory = memory
        self._keys = keys
        self._client = client
        self._notifications = notifications
        self._windows = windows

    async def execute(self, commands: Sequence[Command[Any]]) -> list[Any]:
        """Executes commands in order; returns their results in that order.

        Concurrent batches share round trips. Raises `StoreUnavailable` if the server is
        unavailable, read-only, of another schema version, or silent for two seconds; `StoreFull`
        if its memory is full; and `RuntimeError` if it refuses a command, which is a bug.
        """
        if not commands:
            return []
        if WRITERS.isdisjoint(map(type, commands)):
            return await self._execute(commands)
        try:
            return await self._execute(commands)
        finally:
            # The server will say so too. But for this worker a change holds once it is answered.
            self._memory.invalidate(names_written(commands))

    async def _execute(self, commands: Sequence[Command[Any]]) -> list[Any]:
        encoded = self._encode(commands)
        replies = await self._client.run(encoded)
        for _ in range(1, CALENDAR_ATTEMPTS):
            wrong = [i for i, reply in enumerate(replies) if is_wrong_calendar(reply)]
            if not wrong:
                break
            self._windows.use_server_time(replies[wrong[-1]])
            # Only those: the others were executed, and none of them depends on a wrong one.
            repeated = await self._client.run(self._encode([commands[i] for i in wrong]))
            for i, reply in zip(wrong, repeated, strict=True):
                replies[i] = reply
        results = []
        for command, redis_command, reply in zip(commands, encoded, replies, strict=True):
            if isinstance(reply, RedisError):
                if is_wrong_calendar(reply):  # its clock jumps back and forth
                    raise StoreUnavailable
                raise self._client.translate(reply, type(command).__name__) from reply
            results.append(redis_command.read(reply))
        return results

    def _encode(self, commands: Sequence[Command[Any]]) -> list[RedisCommand]:
        if (calendar := self._windows.read()) is not self._keys.calendar:
            self._keys = replace(self._keys, calendar=calendar)
        # By class in the registry: as `encode(command, keys)`, without a dispatch for each.
        return [encode.registry[type(command)](command, self._keys) for command in commands]

    def watch(self, flight: str) -> AbstractAsyncContextManager[Watch]:
        """Watches a flight. Enter it *before* reading the state that decides whether to wait."""
        return self._notifications.subscribe(self._keys.channel(flight))

    async def check_schema(self) -> None:
        """Turns an empty server into a store, if it may, and checks the rights of its user.

        Raises `SchemaMismatch`, `StoreMissing`, `StoreMisconfigured`, or `StoreUnavailable` with
        its reason. A worker need not call this: every connection begins with the check of schema
        and writes.
        """
        channel = self._keys.channel("probe")
        await self._client.check(
            (*SCRIPT_COMMANDS, *STORE_COMMANDS),
            subscribe=lambda: self._notifications.check(channel),
        )


@asynccontextmanager
async def open_redis_store(
    url: str,
    *,
    prefix: str = DEFAULT_PREFIX,
    may_create: bool = True,
    calendar: Calendar = UTC_CALENDAR,
    clock: Callable[[], float] = time.time,
) -> AsyncIterator[RedisStore]:
    """The store at a `redis://`, `rediss://` or `unix://` URL.

    Sends nothing yet, so a worker can start while Redis is down; the store connects, and
    reconnects, by itself. At the first contact an empty server becomes a store. With `may_create`
    False it does not; call `check_schema`, which then raises `StoreMissing`.

    `calendar` has the windows of limits. `clock` returns this machine's Unix seconds; which window
    is the current one follows from the server's clock.

    Raises `ValueError` for a URL that cannot be used; its message never quotes the URL.
    """
    keys = Keys(prefix, day_at=calendar.day_at)
    client = RedisClient(
        find_addresses(url),
        keys=keys,
        scripts=tuple(SCRIPTS.values()),
        may_create=may_create,
        holds_books=True,
    )
    # Notifications come from the server that takes the commands.
    notifications = Notifications(client.addresses)
    # What is kept too: another server would not tell of its writes.
    memory = ReadMemory()
    tracked = TrackedServer(client.addresses, memory, keys=keys)

    def reconnect() -> None:
        notifications.reconnect()
        tracked.reconnect()

    client.on_connected = reconnect
    client.addresses.on_replaced.append(tracked.reconnect)
    async with client.open(), notifications.open(), tracked.open():
        yield RedisStore(
            client.location,
            keys=keys,
            client=client,
            notifications=notifications,
            windows=CurrentWindows(calendar, clock),
            memory=memory,
            kept=RedisKeptReads(memory, tracked),
        )
