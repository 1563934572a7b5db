"""The store in Redis."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Final

from redis.exceptions import ResponseError

from gateway.store.protocol import Command, Watch
from gateway.store.redis.client import Link, place_of, pool_of, refusal
from gateway.store.redis.commands import Call, call_for
from gateway.store.redis.keys import Keys
from gateway.store.redis.pubsub import Wakes
from gateway.store.redis.scripts import SCRIPTS

DEFAULT_PREFIX: Final = "igw:"


class RedisStore:
    """`verbs.Store` over one Redis server. Made by `open_redis_store`."""

    def __init__(self, place: str, *, keys: Keys, link: Link, wakes: Wakes) -> None:
        self.name = place
        self._keys = keys
        self._link = link
        self._wakes = wakes

    async def execute(self, commands: Sequence[Command[Any]]) -> list[Any]:
        """Runs verbs in order; their answers in the same order.

        Batches of concurrent callers share round trips. Raises `errors.StoreUnavailable` when
        the server is away, read-only, of another layout or silent for two seconds, StoreFull when
        its memory is full, and RuntimeError when it refuses a command, which is a fault of ours.
        """
        if not commands:
            return []
        calls = [call_for.registry[type(command)](command, self._keys) for command in commands]
        replies = await self._link.run(calls)
        return [
            _answer(command, call, reply)
            for command, call, reply in zip(commands, calls, replies, strict=True)
        ]

    def watch(self, flight: str) -> AbstractAsyncContextManager[Watch]:
        """Watches a flight. Enter it *before* the look-up that decides to wait."""
        return self._wakes.watch(self._keys.wake(flight))

    async def check_schema(self) -> None:
        """Stamps a server that is empty or older.

        Raises `LayoutMismatch`, `StoreMissing`, `StoreUnavailable`.

        For whoever starts the gateway; a worker need not: nothing is ever sent to a server whose
        stamp was not seen.
        """
        await self._link.check_schema()


def _answer(command: Command[Any], call: Call, reply: Any) -> Any:
    if isinstance(reply, ResponseError):
        raise refusal(reply, type(command).__name__) from reply
    return call.read(reply)


@asynccontextmanager
async def open_redis_store(
    url: str, *, prefix: str = DEFAULT_PREFIX, may_create: bool = True
) -> AsyncIterator[RedisStore]:
    """The store at a `redis://`, `rediss://` or `unix://` URL.

    An empty server becomes a store at the first contact, unless that may not be: whoever only
    looks calls `check_layout`, which then raises `StoreMissing`.

    Sends nothing yet, so a worker can start while Redis is down; it connects, and reconnects, by
    itself. Raises ValueError for a URL that it cannot use, never quoting its password.
    """
    place, keys, pool = place_of(url), Keys(prefix), pool_of(url)
    link = Link(
        pool,
        place,
        stamp_key=keys.layout,
        scripts=tuple(SCRIPTS.values()),
        may_create=may_create,
    )
    wakes = Wakes(pool)
    async with link.open(), wakes.open():
        yield RedisStore(place, keys=keys, link=link, wakes=wakes)
