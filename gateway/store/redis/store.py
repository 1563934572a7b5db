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
from gateway.store.protocol import Command, Watch
from gateway.store.redis.client import NodeReplies
from gateway.store.redis.clients import Client, create_client
from gateway.store.redis.commands import RedisCommand, encode
from gateway.store.redis.keys import DEFAULT_PREFIX, Keys
from gateway.store.redis.pubsub import Notifications
from gateway.store.redis.rights import SCRIPT_COMMANDS, STORE_COMMANDS
from gateway.store.redis.scripts import SCRIPTS
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
        client: Client,
        notifications: Notifications,
        windows: CurrentWindows,
    ) -> None:
        self.name = name
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
            if isinstance(reply, NodeReplies) and redis_command.merge is not None:
                found = self._read_all(redis_command, reply, type(command).__name__)
                results.append(redis_command.merge(found))
            else:
                results.append(redis_command.read(reply))
        return results

    def _read_all(self, command: RedisCommand, found: NodeReplies, name: str) -> list[Any]:
        """The results of a command that all nodes of a cluster have executed."""
        for reply in found.replies:
            if isinstance(reply, RedisError):
                raise self._client.translate(reply, name) from reply
        return [command.read(reply) for reply in found.replies]

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
    """The store at a `redis://`, `rediss://`, `unix://` or `redis+cluster://` URL.

    Sends nothing yet, so a worker can start while Redis is down; the store connects, and
    reconnects, by itself. At the first contact an empty server becomes a store. With `may_create`
    False it does not; call `check_schema`, which then raises `StoreMissing`.

    `calendar` has the windows of limits. `clock` returns this machine's Unix seconds; which window
    is the current one follows from the server's clock.

    Raises `ValueError` for a URL that cannot be used; its message never quotes the URL.
    """
    keys = Keys(prefix, day_at=calendar.day_at)
    client = create_client(
        url,
        keys=keys,
        scripts=tuple(SCRIPTS.values()),
        may_create=may_create,
        holds_books=True,
    )
    # Notifications come from the server that takes the commands.
    notifications = Notifications(client.addresses)
    client.on_connected = notifications.reconnect
    client.addresses.on_replaced.append(notifications.reconnect)
    async with client.open(), notifications.open():
        yield RedisStore(
            client.location,
            keys=keys,
            client=client,
            notifications=notifications,
            windows=CurrentWindows(calendar, clock),
        )
