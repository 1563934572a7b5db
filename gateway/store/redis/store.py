"""The store in Redis."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from typing import Any, Final

from redis.exceptions import RedisError

from gateway.calendar import UTC_CALENDAR, Calendar
from gateway.errors import StoreUnavailable
from gateway.store.commands import CompareAndSet, Receive, Settle, SetValue
from gateway.store.kept_reads import WRITERS, ReadMemory, names_announced, names_written
from gateway.store.protocol import Command, KeptReads, Watch
from gateway.store.redis.client import NodeReplies, NotReached, has_error
from gateway.store.redis.clients import Client, create_client
from gateway.store.redis.cluster.client import ClusterClient
from gateway.store.redis.cluster.tracking import TrackedCluster
from gateway.store.redis.commands import RedisCommand, encode
from gateway.store.redis.keys import DEFAULT_PREFIX, Keys
from gateway.store.redis.pubsub import Notifications
from gateway.store.redis.repeats import LearnedKeys, read_repeat
from gateway.store.redis.rights import SCRIPT_COMMANDS, STORE_COMMANDS
from gateway.store.redis.scripts import SCRIPTS
from gateway.store.redis.tracking import RedisKeptReads, Tracked, TrackedServer
from gateway.store.redis.windows import CurrentDays, CurrentWindows

MAX_ATTEMPTS: Final = 12
"""How often a script is sent that needs other days or further keys. Each step of a script may need
keys of its own, and other workers may change which ones meanwhile."""

MAX_ASKED: Final = 3
"""How often a script of a queue may ask for further keys. Then it does without them: it estimates
a position, or takes only the turns whose keys it has."""

_ENCODERS: Final = encode.registry


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
        memory: ReadMemory,
        tracked: Tracked,
    ) -> None:
        self.name = name
        self.kept: KeptReads = RedisKeptReads(memory, tracked)
        self._tracked = tracked
        self._memory = memory
        self._keys = keys
        self._client = client
        self._notifications = notifications
        self._windows = windows
        self._days: CurrentDays | None = None
        self._learned = LearnedKeys()

    async def execute(self, commands: Sequence[Command[Any]]) -> list[Any]:
        """Executes commands in order; returns their results in that order.

        Concurrent batches share round trips. Raises `StoreUnavailable` if the server is
        unavailable, read-only, of another schema version, or silent for two seconds; `StoreFull`
        if its memory is full; and `RuntimeError` if it refuses a command, which is a bug.
        """
        if not commands:
            return []
        kinds = set(map(type, commands))
        must_be_replicated = (
            not REPLICATED.isdisjoint(kinds)
            and self._client.is_replicated
            and any(map(_must_be_replicated, commands))
        )
        mark: Any = self._client.mark() if must_be_replicated else None
        try:
            encoded = self._encode(commands)
            replies = await self._client.run(encoded, mark)
            if has_error(replies):
                await self._repeat(commands, encoded, replies, mark)
                for command, reply in zip(commands, replies, strict=True):
                    if isinstance(reply, RedisError):
                        raise self._refusal(command, reply) from reply
            if must_be_replicated:
                await self._client.confirm(mark, [each.keys[0] for each in encoded if each.keys])
            results: list[Any] = []
            for command, each, reply in zip(commands, encoded, replies, strict=True):
                if each.follow_up is None and each.merge is None:
                    results.append(each.read(reply))
                else:
                    results.append(await self._read(command, each, reply))
            return results
        finally:
            if not WRITERS.isdisjoint(kinds):
                # The server reports it too, but later than its reply. This worker must not use an
                # old result after that reply.
                self._memory.invalidate(names_written(commands))
                if self._tracked.is_announcing and (names := names_announced(commands)):
                    await self._tracked.announce(names)

    async def _read(self, command: Command[Any], encoded: RedisCommand, reply: Any) -> Any:
        """The result, after what the reply asks for, and of the replies of all nodes."""
        if encoded.follow_up is not None:
            further = await self._client.run(encoded.follow_up(reply))
            self._check(command, further)
            return encoded.read([reply, *further])
        if encoded.merge is not None and isinstance(reply, NodeReplies):
            self._check(command, reply.replies)
            return encoded.merge([encoded.read(each) for each in reply.replies])
        return encoded.read(reply)

    def _check(self, command: Command[Any], replies: Sequence[Any]) -> None:
        """Raises the refusal of `command`, if there is one."""
        for reply in replies:
            if isinstance(reply, RedisError):
                raise self._refusal(command, reply) from reply

    async def _repeat(
        self,
        commands: Sequence[Command[Any]],
        encoded: list[RedisCommand],
        replies: list[Any],
        mark: Any,
    ) -> None:
        """Sends again the scripts that need other days or further keys.

        Only those: the others were executed, and none of them depends on one that did nothing.
        """
        further: dict[int, dict[str, None]] = defaultdict(dict)
        for attempt in range(1, MAX_ATTEMPTS):
            repeats = {
                i: repeat for i, reply in enumerate(replies) if (repeat := read_repeat(reply))
            }
            if not repeats:
                return
            for i, repeat in repeats.items():
                self._windows.use_server_time(repeat.now)
                # With those of the attempt before: `_learned` may have dropped them by now.
                further[i] |= dict.fromkeys((*encoded[i].keys, *repeat.keys))
                if attempt >= MAX_ASKED and encoded[i].asked_often:
                    further[i][encoded[i].asked_often] = None
                for topic in encoded[i].recalls[:1]:
                    self._learned.remember(topic, repeat.keys)
            # In a cluster, the commands after such a script were not sent yet. They are sent now,
            # unless another command has failed.
            due = list(repeats)
            if all(i in repeats or not _has_failed(reply) for i, reply in enumerate(replies)):
                due = [
                    i
                    for i, reply in enumerate(replies)
                    if i in repeats or isinstance(reply, NotReached)
                ]
            again = self._encode([commands[i] for i in due])
            for i, each in zip(due, again, strict=True):
                encoded[i] = each.with_keys(further[i]) if further[i] else each
            repeated = await self._client.run([encoded[i] for i in due], mark)
            for i, reply in zip(due, repeated, strict=True):
                replies[i] = reply

    def _refusal(self, command: Command[Any], error: RedisError) -> Exception:
        if read_repeat(error):  # the clock jumps back and forth, or the keys change all the time
            return StoreUnavailable()
        return self._client.translate(error, type(command).__name__)

    def _encode(self, commands: Sequence[Command[Any]]) -> list[RedisCommand]:
        if (days := self._windows.read()) is not self._days:
            self._days = days
            self._keys = replace(
                self._keys,
                calendar=days.calendar,
                days=days.ledger,
                today=days.today,
                planned=self._learned.planned,
            )
        keys, learned = self._keys, self._learned
        encoded: list[RedisCommand] = []
        for command in commands:
            # By class in the registry: as `encode(command, keys)`, without a dispatch for each.
            each = _ENCODERS[type(command)](command, keys)
            encoded.append(learned.declare(each) if each.recalls or each.teaches else each)
        return encoded

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

    async def find_wait_refusal(self) -> str | None:
        """As `RedisClient.find_wait_refusal`."""
        return await self._client.find_wait_refusal()


REPLICATED: Final = frozenset({Receive, Settle, CompareAndSet, SetValue})
"""The commands that `_must_be_replicated` may be true of."""


def _must_be_replicated(command: Command[Any]) -> bool:
    """Whether `execute` waits until replicas have the write, so that no promotion loses it.

    These are purchases that upstream has charged or that were given up, records of keys and teams,
    and take-downs. All of them are rare. If a promotion opened a purchase again that was given up,
    it would be charged once its worker ends.
    """
    match command:
        case Receive() | Settle() | CompareAndSet():
            return True
        case SetValue():
            return command.is_kept
    return False


def _has_failed(reply: Any) -> bool:
    """Whether the command was sent, and refused."""
    return isinstance(reply, RedisError) and not isinstance(reply, NotReached)


@asynccontextmanager
async def open_redis_store(
    url: str,
    *,
    prefix: str = DEFAULT_PREFIX,
    may_create: bool = True,
    calendar: Calendar = UTC_CALENDAR,
    clock: Callable[[], float] = time.time,
) -> AsyncIterator[RedisStore]:
    """The store at a URL with one of `urls.REDIS_SCHEMES`.

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
    # So do the reports of writes, because another server does not report these.
    memory = ReadMemory()
    tracked: TrackedServer | TrackedCluster
    if isinstance(client, ClusterClient):
        tracked = TrackedCluster(client, memory, keys=keys)
    else:
        tracked = TrackedServer(client.addresses, memory, keys=keys)

    def reconnect() -> None:
        notifications.reconnect()
        # `TrackedCluster` follows the map of slots by itself.
        if isinstance(tracked, TrackedServer):
            tracked.reconnect()

    client.on_connected = reconnect
    client.addresses.on_replaced.append(reconnect)
    async with client.open(), notifications.open(), tracked.open():
        yield RedisStore(
            client.location,
            keys=keys,
            client=client,
            notifications=notifications,
            windows=CurrentWindows(calendar, clock),
            memory=memory,
            tracked=tracked,
        )
