"""Gateways of this version share a store with gateways of the previous version.

Scripts of the previous version do not write the hash `reserved`. They write everything else alike.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import pytest
import redis

from gateway.store import commands
from gateway.store.batch import execute
from gateway.store.commands import Books, Consumption, Counter, Place, ReadBooks, WindowName
from gateway.store.protocol import Store
from gateway.store.redis.store import open_redis_store

RESERVED: Final = "igw:{books}:reserved:w"
LIMITED: Final = (
    Consumption(Counter("key:k", "purchases", "concurrency", 100), 1),
    Consumption(Counter("key:k", "usd_micros", "day", 10**9), 10),
)
WINDOWS: Final = (
    WindowName("key:k", "concurrency", ""),
    WindowName("upstream:a", "concurrency", ""),
)


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as opened:
        yield opened


async def reserve(store: Store, count: int) -> None:
    """The account makes two images at a time, so the others wait."""
    for i in range(count):
        place = Place("a", f"k{i % 2}", 1, 1, None, 2)
        amounts = {"images": 1, "usd_micros": 10}
        await execute(
            store, commands.Reserve(f"p{i}", "w", LIMITED, b"{}", ("key:k",), amounts, place)
        )


async def read(store: Store) -> Books:
    return await execute(store, ReadBooks(WINDOWS, ("all",), 100))


async def settle(store: Store, purchase: str) -> str:
    charge = {"images": 1, "usd_micros": 7}
    settlement = await execute(store, commands.Settle(purchase, charge, b"{}", totals=("all",)))
    return settlement.status


def held(books: Books, window: WindowName) -> int:
    assert books.purchases is not None
    return sum(
        (each.reserved or {}).get(window, {}).get("purchases", 0) for each in books.purchases
    )


async def test_purchases_that_the_previous_version_reserved_are_finished(
    redis_url: str, client: redis.Redis
) -> None:
    async with open_redis_store(redis_url) as store:
        await reserve(store, 6)
        with_hash = await read(store)
        assert client.delete(RESERVED)  # the one difference between the two
    async with open_redis_store(redis_url) as store:
        books = await read(store)
        assert books.purchases == with_hash.purchases
        assert [held(books, window) for window in WINDOWS] == [6, 2]
        assert await settle(store, "p0") == "settled"
        turns = await execute(store, commands.TakeTurns("a", "w", None, 2))
        assert turns.taken == ("p2",)
        place = Place("a", "other", 1, 1, None, 2)
        await execute(store, commands.Reroute("p3", "w", LIMITED, b"{}", place=place))
        books = await read(store)
        assert [held(books, window) for window in WINDOWS] == [5, 2]
        assert [window.reserved["purchases"] for window in books.windows] == [5, 2]
        for journal in await execute(store, commands.OpenJournals()):
            assert await settle(store, journal.purchase) == "settled"
        books = await read(store)
        assert [window.reserved for window in books.windows] == [{}, {}]
        assert books.totals[0].charged == 6 * 7


async def test_fields_that_the_previous_version_leaves_are_not_read_and_expire(
    redis_url: str, client: redis.Redis
) -> None:
    async with open_redis_store(redis_url) as store:
        await execute(store, commands.Heartbeat("w"))
        await reserve(store, 2)
        left = client.hgetall(RESERVED)
        assert len(left) == 2
        assert await settle(store, "p0") == "settled"
        client.hset(RESERVED, mapping=left)  # as a settlement by the previous version leaves it
        books = await read(store)
        assert books.purchases is not None
        assert [each.purchase for each in books.purchases] == ["p1"]
        await execute(store, commands.Heartbeat("w"))
        assert 6 * 86400 < client.ttl(RESERVED) <= 7 * 86400
