"""The store in Redis."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from redis.exceptions import RedisError

from gateway.store.protocol import Command, Watch
from gateway.store.redis.client import RedisClient
from gateway.store.redis.commands import encode
from gateway.store.redis.keys import DEFAULT_PREFIX, Keys
from gateway.store.redis.pubsub import Notifications
from gateway.store.redis.rights import SCRIPT_COMMANDS, STORE_COMMANDS
from gateway.store.redis.scripts import SCRIPTS


class RedisStore:
    """A `protocol.Store` in one Redis server, opened by `open_redis_store`."""

    def __init__(
        self, name: str, *, keys: Keys, client: RedisClient, notifications: Notifications
    ) -> None:
        self.name = name
        self._keys = keys
        self._client = client
        self._notifications = notifications

    async def execute(self, commands: Sequence[Command[Any]]) -> list[Any]:
        """Executes commands in order; returns their results in that order.

        Concurrent batches share round trips. Raises `StoreUnavailable` if the server is
        unavailable, read-only, of another schema version, or silent for two seconds; `StoreFull`
        if its memory is full; and `RuntimeError` if it refuses a command, which is a bug.
        """
        if not commands:
            return []
        # By class in the registry: as `encode(command, keys)`, without a dispatch for each.
        encoded = [encode.registry[type(command)](command, self._keys) for command in commands]
        replies = await self._client.run(encoded)
        results = []
        for command, redis_command, reply in zip(commands, encoded, replies, strict=True):
            if isinstance(reply, RedisError):
                raise self._client.translate(reply, type(command).__name__) from reply
            results.append(redis_command.read(reply))
        return results

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
    url: str, *, prefix: str = DEFAULT_PREFIX, may_create: bool = True
) -> AsyncIterator[RedisStore]:
    """The store at a `redis://`, `rediss://` or `unix://` URL.

    Sends nothing yet, so a worker can start while Redis is down; the store connects, and
    reconnects, by itself. At the first contact an empty server becomes a store. With `may_create`
    False it does not; call `check_schema`, which then raises `StoreMissing`.

    Raises `ValueError` for a URL that cannot be used; its message never quotes the URL.
    """
    keys = Keys(prefix)
    client = RedisClient(
        url,
        keys=keys,
        scripts=tuple(SCRIPTS.values()),
        may_create=may_create,
        holds_books=True,
    )
    # Notifications come from the server that takes the commands.
    notifications = Notifications(client.addresses)
    client.on_connected = notifications.reconnect
    async with client.open(), notifications.open():
        yield RedisStore(client.location, keys=keys, client=client, notifications=notifications)
