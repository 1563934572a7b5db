"""`Inspect` and `MeasureStore` on every store, and the facts that only Redis has."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import redis

from gateway.store.batch import execute
from gateway.store.commands import Append, Inspect, MeasureStore, StoreFacts
from gateway.store.protocol import Store
from gateway.store.redis.store import open_redis_store
from gateway.store.sqlite.store import open_sqlite_store
from tests.redis_server import run_durable_redis, run_redis_server


async def inspect_redis(url: str) -> StoreFacts:
    async with open_redis_store(url) as store:
        return await execute(store, Inspect())


async def test_it_returns_the_stores_own_time(store: Store) -> None:
    before = time.time()
    facts = await execute(store, Inspect())
    assert before - 0.1 <= facts.now <= time.time() + 0.1


async def test_the_embedded_store_is_durable_and_evicts_nothing(sqlite_path: Path) -> None:
    async with open_sqlite_store(sqlite_path, clock=lambda: 1234.5) as store:
        facts = await execute(store, Inspect())
    assert facts == StoreFacts("sqlite", 1234.5, None, None, is_durable=True)


@pytest.mark.parametrize(
    ("policy", "maxmemory", "expected"),
    [("noeviction", 0, None), ("allkeys-lru", 200 << 20, 200 << 20)],
)
async def test_redis_returns_its_policy_and_its_memory(
    tmp_path: Path, policy: str, maxmemory: int, expected: int | None
) -> None:
    with run_redis_server(tmp_path) as url:
        with redis.Redis.from_url(url) as client:
            client.config_set("maxmemory-policy", policy)
            client.config_set("maxmemory", maxmemory)
        facts = await inspect_redis(url)
    assert (facts.kind, facts.eviction_policy, facts.maxmemory_bytes) == ("redis", policy, expected)


async def test_redis_is_durable_with_an_append_only_file(tmp_path: Path, redis_url: str) -> None:
    assert not (await inspect_redis(redis_url)).is_durable
    with run_durable_redis(tmp_path) as server:
        assert (await inspect_redis(server.url)).is_durable


async def test_a_full_redis_can_be_inspected(tmp_path: Path) -> None:
    with run_redis_server(tmp_path) as url:
        async with open_redis_store(url) as store:
            await store.check_schema()
            with redis.Redis.from_url(url) as client:
                client.config_set("maxmemory", 1)
            assert (await execute(store, Inspect())).maxmemory_bytes == 1


async def test_a_store_says_how_much_it_uses_and_has(store: Store) -> None:
    before = await execute(store, MeasureStore())
    await execute(store, Append((b"x" * 1000,) * 2000))
    after = await execute(store, MeasureStore())
    # A cluster says how full its fullest node is, as a part of all memory.
    assert 1_500_000 < after.used_bytes - before.used_bytes < 3 * 4_000_000
    assert after.used_bytes < after.capacity_bytes


async def test_the_capacity_of_redis_is_its_maxmemory_also_when_it_is_full(tmp_path: Path) -> None:
    with run_redis_server(tmp_path) as url:
        async with open_redis_store(url) as store:
            machine = await execute(store, MeasureStore())
            with redis.Redis.from_url(url) as client:
                client.config_set("maxmemory", 1)
            full = await execute(store, MeasureStore())
    assert machine.capacity_bytes > 100_000_000
    assert (full.kind, full.capacity_bytes) == ("memory", 1)
