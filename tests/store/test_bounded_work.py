"""No command works longer the more the store holds: work is counted against rows.

For the embedded store work is the steps of SQLite's virtual machine. For Redis it is the commands
that ran, those of scripts included, the elements that sorted sets removed, and the kilobytes of the
replies.
"""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import redis

from gateway.limits import Period
from gateway.store import commands
from gateway.store.batch import execute
from gateway.store.commands import BoundedSet, Consumption, Counter, Slot
from gateway.store.protocol import Command, Store
from gateway.store.redis.store import open_redis_store
from gateway.store.sqlite.store import open_sqlite_store

FEW, MANY = 2_500, 5_000
BATCH = 250
LONG = 3600.0


@dataclass
class Measured:
    """A store whose work can be counted, and whose data can be made to expire."""

    store: Store
    work: Callable[[Command[Any]], Awaitable[int]]
    expire: Callable[[], None]


@asynccontextmanager
async def measured_sqlite(path: Path) -> AsyncIterator[Measured]:
    async with open_sqlite_store(path) as store:
        queues: list[Any] = [store._writer, store._reader]  # type: ignore[attr-defined]
        steps = 0

        def step() -> int:
            nonlocal steps
            steps += 1
            return 0

        async def work(command: Command[Any]) -> int:
            nonlocal steps
            for queue in queues:
                await queue.run(lambda tx: tx.db.set_progress_handler(step, 1))
            steps = 0
            await store.execute([command])
            counted = steps
            for queue in queues:
                await queue.run(lambda tx: tx.db.set_progress_handler(None, 0))
            return counted

        def expire() -> None:
            with sqlite3.connect(path) as db:
                tables = "SELECT m.name FROM sqlite_schema m JOIN pragma_table_info(m.name) c"
                found = db.execute(f"{tables} WHERE c.name = 'remove_after' AND m.type = 'table'")
                for (table,) in found.fetchall():
                    db.execute(f"UPDATE {table} SET remove_after = 1")  # noqa: S608
            db.close()

        yield Measured(store, work, expire)


@asynccontextmanager
async def measured_redis(url: str) -> AsyncIterator[Measured]:
    with redis.Redis.from_url(url) as raw:
        async with open_redis_store(url) as store:

            def spent() -> int:
                calls = sum(row["calls"] for row in raw.info("commandstats").values())
                return int(calls) + int(raw.info("stats")["total_net_output_bytes"]) // 1024

            async def work(command: Command[Any]) -> int:
                with counted_removals(raw) as removed:
                    before = spent()
                    await store.execute([command])
                    return spent() - before + removed()

            def expire() -> None:
                for key in (b"igw:{lru}:expires", *raw.keys("igw:{bounded}:*")):
                    raw.zunionstore(key, {key: 0})  # the time 0

            yield Measured(store, work, expire)


@contextmanager
def counted_removals(raw: redis.Redis) -> Iterator[Callable[[], int]]:
    """How many members the sorted sets have lost since: one command may remove them all."""

    def members() -> int:
        sets = (b"igw:{lru}:used", b"igw:{books}:workers", *raw.keys("igw:{bounded}:*"))
        return sum(int(raw.zcard(key)) for key in sets)

    before = members()
    yield lambda: max(0, before - members())


@pytest.fixture(params=["sqlite", "redis"])
async def measured(request: pytest.FixtureRequest) -> AsyncIterator[Measured]:
    """An empty store of each kind."""
    if request.param == "sqlite":
        opened = measured_sqlite(request.getfixturevalue("sqlite_path"))
    else:
        opened = measured_redis(request.getfixturevalue("redis_url"))
    async with opened as found:
        yield found


async def fill(store: Store, make: Callable[[int], Command[Any]], rows: range) -> None:
    for first in range(rows.start, rows.stop, BATCH):
        await store.execute([make(i) for i in range(first, min(first + BATCH, rows.stop))])


def digest(i: int) -> str:
    return f"{i:064x}"


def track(i: int) -> Command[Any]:
    return commands.Track(digest(i), 10, LONG, 1 << 40)


def counter(subject: str, period: Period = "day") -> Counter:
    return Counter(subject, "images", period, 10)


def store_images(i: int) -> Command[Any]:
    return commands.StoreImages(digest(i), "f", {0: Slot("i", 0.0, b"{}")}, LONG, LONG)


MAKERS: dict[str, Callable[[int], Command[Any]]] = {
    "digests": track,
    "entries": store_images,
    "records": lambda i: commands.CompareAndSet((commands.Write("s", digest(i), b"v", None),)),
    "members of a set": lambda i: commands.AddToSet("s", "set", (digest(i),), LONG),
    "sets": lambda i: commands.AddToSet("s", digest(i), ("m",), LONG),
    "members of a bounded set": lambda i: commands.AddToBoundedSets(
        (BoundedSet("s", "b", 100_000),), (digest(i),), LONG
    ),
    "members of an ordered set": lambda i: commands.AddToOrderedSets(
        "s", ("o",), digest(i), LONG, 100_000
    ),
    "ordered sets": lambda i: commands.AddToOrderedSets("s", (digest(i),), "m", LONG, 10),
    "hits": lambda i: commands.CountHits(((digest(i), 1),), LONG),
    "values": lambda i: commands.SetValue("s", digest(i), b"v", LONG),
    "notifications of one channel": lambda i: commands.Notify("f"),
    "open journals of a worker": lambda i: commands.Reserve(
        digest(i), "w", (Consumption(counter("key:k"), 0),), b"p"
    ),
    "workers": lambda i: commands.Heartbeat(digest(i)),
    "buckets": lambda i: commands.Reserve(
        digest(i), "w", (Consumption(counter(f"key:{i}", "minute"), 1),), b""
    ),
}

# What each of these does is bounded whatever else the store holds.
EVERYTHING_BUT_THE_LEDGER: list[Command[Any]] = [
    commands.ReadLruTotals(),
    commands.EvictTo(1 << 40),
    commands.EvictionCandidates(1 << 40),
    commands.Track("new", 10, LONG, 1 << 40),
    commands.EvictTo(50),
    commands.Track("newer", 10, LONG, 50),
    commands.Touch(("new", digest(1))),
    commands.AreTracked(("new", digest(1))),
    commands.ReadEntry(digest(1)),
    commands.ScanEntries(limit=50),
    commands.AcquireLease(digest(2), (0, 1), "flight", LONG),
    commands.EmptySlots(digest(3), {0: "i"}),
    commands.ProlongSlots(digest(3), {0: "i"}, LONG, LONG),
    commands.Get("s", digest(1)),
    commands.ScanRecords("s"),
    commands.ScanSet("s", "set"),
    commands.HasMember("s", "set", digest(1)),
    commands.AddToSet("s", "set", ("new",), LONG),
    commands.RemoveFromSet("s", "set", ("new",)),
    commands.AddToBoundedSets((BoundedSet("s", "b", 1_000),), ("new", "newer"), LONG),
    commands.AddToOrderedSets("s", ("o", digest(1)), "new", LONG, 100, digest(200)),
    commands.RemoveFromOrderedSets("s", ("o", digest(2)), "new"),
    commands.ReadOrderedSet("s", "o", 10, digest(300)),
    commands.CountOrderedSets("s", ("o", digest(1), "none")),
    commands.CountHits(((digest(1), 1), ("new", 1)), LONG),
    commands.ReadHits((digest(1), "none")),
    commands.DeleteHits((digest(2), "none")),
    commands.SetValue("s", "new", b"v", LONG),
    commands.GetValue("s", digest(1)),
    commands.Publish("f", "event", b"e", LONG),
    commands.ReadEvents("f"),
    commands.OpenJournals("w", limit=100),
    commands.OpenJournals(limit=100),
    commands.ExpiredWorkers(0.0),
    commands.Deregister("w"),
    commands.Heartbeat("w"),
    commands.PeekCounters((counter("key:k"),)),
    commands.Sweep(100),
]  # fmt: skip


CASES = [
    *((rows, False) for rows in MAKERS),
    *(
        (rows, True)
        for rows in (
            "digests",
            "entries",
            "sets",
            "members of a bounded set",
            "ordered sets",
            "values",
        )
    ),
]


@pytest.mark.parametrize(
    ("rows", "expired"), CASES, ids=[f"{rows}{' expired' * expired}" for rows, expired in CASES]
)
async def test_no_command_works_longer_the_more_there_is(
    measured: Measured, rows: str, expired: bool
) -> None:
    few = await work_with(measured, rows, range(FEW), expired=expired)
    many = await work_with(measured, rows, range(FEW, MANY), expired=expired)
    # A tree of twice the rows may be a little deeper, and the commands leave some rows themselves.
    longer = {c: (few[c], many[c]) for c in few if many[c] > 1.3 * few[c] + 400}
    assert not longer


async def work_with(
    measured: Measured, rows: str, wanted: range, *, expired: bool
) -> dict[str, int]:
    await fill(measured.store, MAKERS[rows], wanted)
    if expired:
        measured.expire()
    return {repr(c): await measured.work(c) for c in EVERYTHING_BUT_THE_LEDGER}


async def test_calls_of_an_accounts_queue_do_little_however_many_keys_wait(redis_url: str) -> None:
    """Of Redis, which does nothing else meanwhile: fifty keys, whose purchases are counted."""
    async with measured_redis(redis_url) as found:

        def reserve(i: int) -> Command[Any]:
            place = commands.Place("a", f"k{i % 50}", 1, 1, 1000, None)
            return commands.Reserve(f"p{i}", "w", (), b"", place=place)

        await fill(found.store, reserve, range(1500))
        read = commands.ReadTurns("a", 1000, None, tuple(f"p{i}" for i in range(1490, 1500)))
        assert await found.work(read) < 1500
        await execute(found.store, commands.Settle("p0", {}, None))
        assert await found.work(commands.TakeTurns("a", "w", 60_000, None)) < 1200


PARTS = 9_000
"""More than the arguments that Lua unpacks at once."""


async def test_commands_of_more_parts_than_lua_unpacks_at_once(store: Store) -> None:
    """None of them fails half-way."""
    assert await execute(store, commands.Append((b"{}",) * PARTS))
    assert len(await execute(store, commands.ReadLedger(limit=PARTS + 1))) == PARTS
    refusals = tuple(
        commands.Refusals(f"k{i}", "reason", 1, b'{"count":', b"{") for i in range(PARTS // 3)
    )
    assert await execute(store, commands.Append((), refusals))
    ends = commands.AppendRefusals(PARTS, ends_minute=True)
    assert await execute(store, ends) == len(refusals)
    assert await execute(store, ends) == 0
    seen = tuple(f"p{i}" for i in range(PARTS))
    turns = await execute(store, commands.TakeTurns("a", "w", 60, 1, seen=seen))
    assert turns.taken == ()
