"""What lives for a short time ends in time, although the store's clock is set back.

The machine's clock cannot be set here, so the tests set the clock of the embedded store, and date
what is in Redis into the future: as a clock that was set back leaves it.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio

from gateway.images import Expected
from gateway.store import commands
from gateway.store.batch import execute
from gateway.store.commands import Consumption, Counter, Write
from gateway.store.protocol import Store
from gateway.store.redis.store import open_redis_store
from gateway.store.sqlite import steady_clock
from gateway.store.sqlite.connection import create_sqlite_schema
from gateway.store.sqlite.store import open_sqlite_store
from tests.waiting import eventually

STEPS = [60.0, 3600.0, 5 * 86_400.0]
MICROS = 1_000_000


@dataclass
class Stepping:
    """A store whose clock a test can set back."""

    store: Store
    set_back: Callable[[float], Awaitable[None]]


@pytest.fixture(params=["sqlite", "redis"])
async def stepping(request: pytest.FixtureRequest) -> AsyncIterator[Stepping]:
    if request.param == "sqlite":
        behind = [0.0]

        async def set_clock_back(seconds: float) -> None:
            behind[0] += seconds

        path = request.getfixturevalue("sqlite_path")
        async with open_sqlite_store(path, clock=lambda: time.time() - behind[0]) as store:
            yield Stepping(store, set_clock_back)
        return
    url = request.getfixturevalue("redis_url")
    async with open_redis_store(url) as store, redis.asyncio.Redis.from_url(url) as client:
        yield Stepping(store, lambda seconds: _date_into_the_future(client, seconds))


async def _date_into_the_future(client: Any, seconds: float) -> None:
    ahead = int(seconds * MICROS)
    async for key in client.scan_iter("igw:*bucket:*"):
        at = int(await client.hget(key, "at") or 0)
        await client.hset(key, "at", at + ahead)
        await client.persist(key)
    async for key in client.scan_iter("igw:leases:*"):
        for slot, value in (await client.hgetall(key)).items():
            expires, granted, flight = value.split(b" ", 2)
            later = b"%d %d %b" % (int(expires) + ahead, int(granted) + ahead, flight)
            await client.hset(key, slot, later)
        await client.persist(key)
    async for key in client.scan_iter("igw:*workers"):
        for worker, at in await client.zrange(key, 0, -1, withscores=True):
            await client.zadd(key, {worker: at + ahead})


def _admit(amount: int = 1) -> commands.Admit:
    counters = (
        Counter(subject, "requests", "minute", 600) for subject in ("key:k", "team:t", "everyone")
    )
    consumptions = tuple(Consumption(counter, amount) for counter in counters)
    return commands.Admit((Expected("keys", "k", b"r"),), consumptions)


@pytest.mark.parametrize("step_seconds", STEPS)
async def test_an_empty_bucket_refills_as_ever(stepping: Stepping, step_seconds: float) -> None:
    """Ten a second: `Retry-After` is true, also for requests that are refused all the while."""
    store = stepping.store
    await execute(store, commands.CompareAndSet((Write("keys", "k", b"r", None),)))
    assert (await execute(store, _admit(600))).denied is None
    await stepping.set_back(step_seconds)

    denied = await execute(store, _admit(20))
    assert denied.denied == 0
    assert 0 < denied.states[0].retry_in <= 2.0
    assert denied.states[0].resets_in <= 60.0

    async def is_admitted() -> bool:
        return (await execute(store, _admit(20))).denied is None

    await eventually(is_admitted)


@pytest.mark.parametrize("step_seconds", STEPS)
async def test_a_bucket_is_not_filled_by_the_step(stepping: Stepping, step_seconds: float) -> None:
    store = stepping.store
    await execute(store, commands.CompareAndSet((Write("keys", "k", b"r", None),)))
    await execute(store, _admit(600))
    await stepping.set_back(step_seconds)
    assert (await execute(store, _admit(300))).denied == 0


async def test_a_reservation_denied_by_a_bucket_lets_it_refill_too(stepping: Stepping) -> None:
    counter = Counter("key:k", "images", "minute", 600)

    async def reserve(purchase: str, amount: int) -> int | None:
        consumptions = (Consumption(counter, amount),)
        command = commands.Reserve(purchase, "w", consumptions, b"")
        return (await execute(stepping.store, command)).denied

    assert await reserve("first", 600) is None
    await stepping.set_back(3600)
    assert await reserve("denied", 20) == 0

    async def is_reserved() -> bool:
        return await reserve("second", 20) is None

    await eventually(is_reserved)


@pytest.mark.parametrize("step_seconds", STEPS)
async def test_the_lease_of_a_dead_leader_lasts_no_longer_than_its_length(
    stepping: Stepping, step_seconds: float
) -> None:
    store = stepping.store
    await execute(store, commands.AcquireLease("f", (0, 1), "dead", 0.3))
    await stepping.set_back(step_seconds)
    assert dict((await execute(store, commands.AcquireLease("f", (0,), "b", 60))).leased) == {
        0: "dead"
    }

    async def is_acquired() -> bool:
        return (await execute(store, commands.AcquireLease("f", (0, 1), "b", 60))).acquired == (
            0,
            1,
        )

    await eventually(is_acquired)


async def test_a_living_leader_keeps_its_lease(stepping: Stepping) -> None:
    store = stepping.store
    await execute(store, commands.AcquireLease("f", (0,), "a", 30))
    await stepping.set_back(3600)
    assert await execute(store, commands.RenewLease("f", "a", 60))
    assert (await execute(store, commands.AcquireLease("f", (0,), "b", 60))).acquired == ()


@pytest.mark.parametrize("step_seconds", STEPS)
async def test_a_dead_worker_expires_as_ever(stepping: Stepping, step_seconds: float) -> None:
    """The heartbeats of the others end what its own one has left in the future."""
    store = stepping.store
    await execute(store, commands.Heartbeat("dead"))
    await stepping.set_back(step_seconds)

    async def has_expired() -> bool:
        await execute(store, commands.Heartbeat("alive"))
        return "dead" in await execute(store, commands.ExpiredWorkers(0.2))

    await eventually(has_expired)


# ── the embedded store: forward too, and over reboots ───────────────────────────────────────


@pytest.mark.parametrize("step_seconds", [s * sign for s in STEPS for sign in (1, -1)])
async def test_setting_the_machines_clock_changes_nothing_that_lives_for_a_short_time(
    sqlite_path: Path, monkeypatch: pytest.MonkeyPatch, step_seconds: float
) -> None:
    wall = time.time
    async with open_sqlite_store(sqlite_path) as store:
        await execute(store, commands.CompareAndSet((Write("keys", "k", b"r", None),)))
        await execute(store, _admit(600))
        await execute(store, commands.AcquireLease("f", (0,), "a", 60))
        await execute(store, commands.Heartbeat("w"))
        await execute(store, commands.SetValue("s", "lock", b"v", 60))
        await execute(store, commands.Publish("a", "e", b"event", 60))
        monkeypatch.setattr(time, "time", lambda: wall() + step_seconds)

        assert (await execute(store, commands.Inspect())).now == pytest.approx(time.time(), abs=5)
        assert (await execute(store, _admit(300))).denied == 0
        assert (await execute(store, commands.AcquireLease("f", (0,), "b", 60))).acquired == ()
        assert await execute(store, commands.ExpiredWorkers(30)) == []
        assert await execute(store, commands.GetValue("s", "lock")) == b"v"
        assert await execute(store, commands.ReadEvents("a")) == [b"event"]


@pytest.mark.parametrize("booted_ahead", [-86_400.0 * 365, 0.0, 86_400.0])
async def test_after_a_reboot_the_steady_clock_goes_on(
    sqlite_path: Path, monkeypatch: pytest.MonkeyPatch, booted_ahead: float
) -> None:
    """Also on a machine that boots in the past, and learns the time from the network later."""
    wall = time.time
    async with open_sqlite_store(sqlite_path) as store:
        await execute(store, commands.Heartbeat("w"))
    before = steady_clock.open_clocks(sqlite_path)()[1]
    monkeypatch.setattr(steady_clock, "_boot_id", lambda: "another boot")
    monkeypatch.setattr(steady_clock, "seconds_since_boot", lambda: 7.0)
    monkeypatch.setattr(time, "time", lambda: wall() + booted_ahead)

    first, second = steady_clock.open_clocks(sqlite_path), steady_clock.open_clocks(sqlite_path)
    assert first()[1] == second()[1] >= before - 1.0
    assert first()[0] == pytest.approx(time.time(), abs=1.0)


async def test_all_processes_have_one_steady_clock(sqlite_path: Path) -> None:
    create_sqlite_schema(sqlite_path)
    clocks = [steady_clock.open_clocks(sqlite_path) for _ in range(3)]
    times = [read()[1] for read in clocks]
    assert times == sorted(times)
    assert times[-1] - times[0] < 1.0
