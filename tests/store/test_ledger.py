"""The contract of the ledger on each adapter: appends, refusals, retention, and their bounds."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import redis

from gateway.errors import StoreFull
from gateway.store import commands
from gateway.store.batch import execute
from gateway.store.commands import (
    LEDGER_END,
    MAX_REFUSAL_REASONS,
    MINUTE_SECONDS,
    RECORD_OVERHEAD_BYTES,
    WRITER_SECONDS,
    Append,
    Refusals,
    TrimLedger,
    Trimmed,
)
from gateway.store.protocol import Store
from gateway.store.redis.store import open_redis_store
from gateway.store.sqlite.commands import execute as execute_in
from gateway.store.sqlite.connection import connect
from gateway.store.sqlite.store import open_sqlite_store
from gateway.store.sqlite.transaction import Transaction
from tests.store.test_redis import Server, server, stopped  # noqa: F401 - fixtures
from tests.store.test_sqlite import Clock
from tests.stores import usually_on

BOOKS = "igw:{books}:"
FOREVER = 1e9
PLENTY = 1 << 40
HOUR = 3600.0
DAY = 86_400
RECORD = b"r" * 200
RECORD_BYTES = len(RECORD) + RECORD_OVERHEAD_BYTES


async def ledger(store: Store) -> list[bytes]:
    return [record for _, record in await execute(store, commands.ReadLedger(limit=100_000))]


async def positions(store: Store) -> list[str]:
    return [position for position, _ in await execute(store, commands.ReadLedger())]


async def bought(store: Store, purchase: str, record: bytes, **charge: int) -> None:
    reserve = commands.Reserve(purchase, "w", (), b"")
    await store.execute([reserve, commands.Settle(purchase, charge, record)])


def numbered(count: int) -> tuple[bytes, ...]:
    return tuple(str(i).encode() for i in range(count))


def trim(
    *,
    keep_charged: float = FOREVER,
    keep_free: float = FOREVER,
    max_bytes: int = PLENTY,
    max_unfolded: int = PLENTY,
    folded_to: str = LEDGER_END,
    limit: int = 1000,
) -> TrimLedger:
    return TrimLedger(keep_charged, keep_free, max_bytes, max_unfolded, folded_to, limit)


def refusals(reason: str = "n", count: int = 1, *, key: str = "k", request: str = "q") -> Refusals:
    other = f'{{"id":"{request}","error":"other","count":'.encode()
    record = f'{{"id":"{request}","error":"{reason}","count":'.encode()
    return Refusals(key, reason, count, record, other)


async def refused(store: Store) -> list[dict[str, Any]]:
    """The records of refusals, after the end of their minute."""
    await execute(store, commands.AppendRefusals(1000, ends_minute=True))
    return [json.loads(record) for record in await ledger(store)]


async def test_the_ledger_is_read_back_from_its_end_in_pages(store: Store) -> None:
    for number in range(4):
        await execute(store, Append(numbered(3)))
        await bought(store, f"p{number}", b"charged %d" % number, images=1)
    forwards = list(await execute(store, commands.ReadLedger()))
    before, backwards = "", []
    while page := await execute(store, commands.ReadLedgerBack(before, 5)):
        backwards += page
        before = page[-1][0]
    assert backwards == forwards[::-1]
    assert len(backwards) == 16
    day = forwards[0][0].partition("/")[0]
    assert list(await execute(store, commands.ReadLedgerBack(f"{day}/", 5))) == []
    assert list(await execute(store, commands.ReadLedgerBack("9999-12-31/", 1))) == forwards[-1:]


# ── searches ────────────────────────────────────────────────────────────────────────────────


async def matches(store: Store, text: bytes, **given: Any) -> list[bytes]:
    """The records of a search of the last minute, page by page."""
    now, after, found = time.time(), "", []
    while True:
        command = commands.SearchLedger(
            text, now - 60, now + 60, is_charged=False, after=after, limit=2
        )
        page = await execute(store, replace(command, **given))
        found += [record for _, record in page.records]
        assert page.scanned <= command.limit
        if not page.next:
            return found
        after = page.next


async def test_a_search_finds_the_records_of_one_kind_and_span_with_a_text(store: Store) -> None:
    free = tuple(f'{{"id":"{name}"}}'.encode() for name in ("a", "aa", "b", "a", "c"))
    await execute(store, Append(free))
    await bought(store, "p", b'{"id":"a"} charged', images=1)
    for text, found in ((b'"a"', [free[0], free[3]]), (b'"c"', [free[4]]), (b"%", []), (b".", [])):
        assert await matches(store, text) == found
    assert await matches(store, b'"a"', is_charged=True) == [b'{"id":"a"} charged']
    now = time.time()
    assert await matches(store, b'"a"', begin=now + 30) == []
    assert await matches(store, b'"a"', end=now - 30) == []


async def test_a_search_reads_at_most_a_page(store: Store) -> None:
    await execute(store, Append(numbered(1500)))
    now = time.time()
    page = await execute(store, commands.SearchLedger(b"1", now - 60, now + 60, is_charged=False))
    assert (page.scanned, len(page.records)) == (1000, sum("1" in str(i) for i in range(1000)))
    (last,) = [
        position
        for position, record in await execute(store, commands.ReadLedger())
        if record == b"999"
    ]
    assert page.next == last


async def test_a_search_finds_refusals_of_minutes_that_are_not_over(store: Store) -> None:
    await execute(store, Append((), (refusals(request="q", count=2), refusals("m", request="r"))))
    (found,) = await execute(store, commands.SearchRefusals(b'"q"'))
    assert json.loads(found) == {"id": "q", "error": "n", "count": 2}
    assert await execute(store, commands.SearchRefusals(b'"n.')) == []


async def test_open_journals_are_found_by_a_text(store: Store) -> None:
    for purchase, payload in (("a", b"one (two)"), ("b", b"three"), ("c", b"one (two)")):
        await execute(store, commands.Reserve(purchase, f"w{purchase}", (), payload))
    found = await execute(store, commands.OpenJournals(text=b"(two"))
    assert sorted(journal.purchase for journal in found) == ["a", "c"]
    (first,) = await execute(store, commands.OpenJournals(text=b"(two", limit=1))
    assert first.payload == b"one (two)"
    assert await execute(store, commands.OpenJournals("wb", text=b"one")) == []
    assert len(await execute(store, commands.OpenJournals())) == 3


# ── appends ─────────────────────────────────────────────────────────────────────────────────


async def test_a_number_of_a_writer_is_appended_once(store: Store, other: Store) -> None:
    """Also its late copies: they arrive after the writer's next append, or from elsewhere."""
    first = Append((b"1", b"2"), (refusals(count=2),), writer="w", number=1)
    second = Append((b"3",), (refusals(count=5),), writer="w", number=2)
    for append in (first, first, second, first, second):
        assert await execute(store, append)
    await asyncio.gather(*(execute(other, append) for append in (first, second) * 10))

    assert await ledger(store) == [b"1", b"2", b"3"]
    assert [record["count"] for record in (await refused(store))[3:]] == [7]


async def test_writers_do_not_share_numbers(store: Store) -> None:
    for writer in ("a", "b"):
        assert await execute(store, Append((writer.encode(),), writer=writer, number=1))
    assert await ledger(store) == [b"a", b"b"]


async def test_a_later_number_of_an_unknown_writer_appends_nothing(store: Store) -> None:
    assert not await execute(store, Append((b"r",), (refusals(),), writer="w", number=2))
    assert await ledger(store) == []
    assert await refused(store) == []


async def test_an_append_repeated_after_hours_is_not_written_again(sqlite_path: Path) -> None:
    clock = Clock()
    async with open_sqlite_store(sqlite_path, clock=clock) as store:
        await execute(store, Append((), writer="w"))
        append = Append((b"r",), writer="w", number=2)
        for hours in (0, 1.5, 20, 23, 25, 1000):
            clock.now += hours * HOUR
            await execute(store, commands.Sweep())
            # From a day after its last append on, the store does not know the writer.
            assert await execute(store, append) == (hours <= 20)
        assert await ledger(store) == [b"r"]


async def test_in_redis_no_id_of_an_append_expires(redis_url: str) -> None:
    append = Append((b"r",), (refusals(),), writer="w", number=1)
    async with open_redis_store(redis_url) as store:
        await execute(store, append)
        with redis.Redis.from_url(redis_url) as client:
            assert {client.ttl(key) for key in client.scan_iter(f"{BOOKS}*")} == {-1}
            # As if it were an hour later.
            hour_ago = time.time() - 2 * HOUR
            client.zadd(f"{BOOKS}writers", {"w": hour_ago * 1e6})
            await execute(store, Append((b"another",)))
        await execute(store, append)
        assert await ledger(store) == [b"r", b"another"]


async def test_redis_forgets_writers_that_have_not_written_for_a_day(redis_url: str) -> None:
    async with open_redis_store(redis_url) as store:
        with redis.Redis.from_url(redis_url) as client:
            day_ago = (time.time() - WRITER_SECONDS - 1) * 1e6
            for i in range(25):
                await execute(store, Append((), writer=f"w{i}"))
            client.zadd(f"{BOOKS}writers", {f"w{i}": day_ago for i in range(25)})
            for i in range(4):
                await execute(store, Append((), writer=f"new {i}"))
            assert client.zcard(f"{BOOKS}writers") == client.hlen(f"{BOOKS}writer-numbers") == 4


# ── order ───────────────────────────────────────────────────────────────────────────────────


async def test_charged_and_free_records_are_read_in_the_order_they_came(store: Store) -> None:
    expected = []
    for i in range(60):
        record = str(i).encode()
        if i % 3:
            await execute(store, Append((record,)))
        else:
            await bought(store, record.decode(), record, usd_micros=i % 2)
        expected.append(record)
    assert await ledger(store) == expected

    found, after = [], ""
    while page := await execute(store, commands.ReadLedger(after, 7)):
        found += [record for _, record in page]
        after = page[-1][0]
    assert found == expected
    all_positions = await positions(store)
    assert all_positions == sorted(set(all_positions))


async def test_positions_grow_while_the_clock_of_redis_is_behind(redis_url: str) -> None:
    """Also over a day, and beyond the digits that a position has for the count."""
    async with open_redis_store(redis_url) as store:
        await execute(store, Append((b"0",)))
        ahead = int((time.time() + 3 * DAY) // DAY * DAY * 1000) - 1
        with redis.Redis.from_url(redis_url) as client:
            client.hset(f"{BOOKS}ledger", mapping={"ms": ahead, "count": 999_998})
        await bought(store, "p", b"1", images=1)
        await execute(store, Append((b"2", b"3")))
        await bought(store, "q", b"4", images=1)
        assert await ledger(store) == [b"0", b"1", b"2", b"3", b"4"]
        found = await positions(store)
        assert found == sorted(set(found))
        assert len({position.split("/")[0] for position in found}) == 3
        removed = await execute(store, trim(keep_charged=0, keep_free=0))
        assert removed.records == 1, "those of the future are not due"


async def test_redis_continues_after_the_last_record_if_its_end_is_lost(redis_url: str) -> None:
    """A server with an eviction policy may evict that key."""
    async with open_redis_store(redis_url) as store:
        await execute(store, Append((b"0",)))
        with redis.Redis.from_url(redis_url) as client:
            client.xadd(
                f"{BOOKS}ledger:free:{datetime.now(UTC):%Y-%m-%d}",
                {"record": "1"},
                id=f"{int(time.time() * 1000) + 60_000}-5",
            )
            client.delete(f"{BOOKS}ledger")
        await bought(store, "p", b"2", images=1)
        await execute(store, Append((b"3",)))
        assert await ledger(store) == [b"0", b"1", b"2", b"3"]


# ── refusals ────────────────────────────────────────────────────────────────────────────────


async def test_refusals_share_one_record_over_all_workers(store: Store, other: Store) -> None:
    await execute(store, Append((), (refusals(count=3, request="first"),)))
    await execute(other, Append((), (refusals(count=4, request="second"),)))
    await execute(store, Append((), (refusals(count=1, key="another", request="third"),)))
    assert await ledger(store) == []
    assert await refused(store) == [
        {"id": "first", "error": "n", "count": 7},
        {"id": "third", "error": "n", "count": 1},
    ]


async def test_refusals_are_appended_exactly_once(store: Store, other: Store) -> None:
    for i in range(50):
        await execute(store, Append((), (refusals(key=f"k{i}", count=i + 1),)))
    command = commands.AppendRefusals(7, ends_minute=True)
    counts = await asyncio.gather(*(execute((store, other)[i % 2], command) for i in range(12)))
    assert sum(counts) == 50
    assert max(counts) == 7
    assert [record["count"] for record in await refused(store)] == list(range(1, 51))


async def test_a_minutes_reasons_of_a_key_are_bounded(store: Store) -> None:
    for i in range(3 * MAX_REFUSAL_REASONS):
        await execute(store, Append((), (refusals(f"r{i}", 2), refusals(f"r{i}", key="b"))))
    await execute(store, Append((), (refusals("r0", 5),)))
    records = await refused(store)
    assert len(records) == 2 * (MAX_REFUSAL_REASONS + 1)
    of_first, of_others = records[0], [r for r in records if r["error"] == "other"]
    assert of_first["count"] == 7
    assert [record["count"] for record in of_others] == [
        2 * 2 * MAX_REFUSAL_REASONS,
        2 * MAX_REFUSAL_REASONS,
    ]


async def test_a_minute_is_appended_when_it_is_over(sqlite_path: Path) -> None:
    """Also if the clock is set back meanwhile."""
    clock = Clock()
    async with open_sqlite_store(sqlite_path, clock=clock) as store:
        command = commands.AppendRefusals(10)
        for step in (MINUTE_SECONDS, -10 * MINUTE_SECONDS):
            await execute(store, Append((), (refusals(),)))
            assert await execute(store, command) == 0
            clock.now += step
            assert await execute(store, command) == 1
            assert await execute(store, command) == 0


async def test_in_redis_a_minute_is_appended_when_it_is_over(redis_url: str) -> None:
    async with open_redis_store(redis_url) as store:
        await execute(store, Append((), (refusals(), refusals("m"))))
        with redis.Redis.from_url(redis_url) as client:
            rows = client.lrange(f"{BOOKS}refusal-rows", 0, -1)
            minute = rows[0].split()[0].decode()
            earlier = str(int(minute) - 1)
            for field, value in client.hgetall(f"{BOOKS}refusals").items():
                moved = field.decode().replace(minute, earlier)
                client.hdel(f"{BOOKS}refusals", field)
                client.hset(f"{BOOKS}refusals", moved, value)
            client.delete(f"{BOOKS}refusal-rows")
            for row in rows:
                client.rpush(f"{BOOKS}refusal-rows", row.decode().replace(minute, earlier))
            await execute(store, Append((), (refusals("this minute"),)))
            assert await execute(store, commands.AppendRefusals(10)) == 2
            assert client.llen(f"{BOOKS}refusal-rows") == 1
            assert await execute(store, commands.AppendRefusals(10, ends_minute=True)) == 1
            assert not client.exists(f"{BOOKS}refusal-rows", f"{BOOKS}refusals")


# ── classes ─────────────────────────────────────────────────────────────────────────────────


async def test_a_record_is_charged_if_its_settlement_moved_anything(store: Store) -> None:
    await bought(store, "money", b"money", usd_micros=1)
    await bought(store, "images", b"images", images=1, usd_micros=0)
    await bought(store, "tokens", b"tokens", tokens=1)
    await bought(store, "nothing", b"nothing", usd_micros=0, images=0)
    await bought(store, "empty", b"empty")
    await execute(store, Append((b"hit",)))
    await execute(store, trim(keep_free=0))
    assert await ledger(store) == [b"money", b"images", b"tokens"]
    await execute(store, trim(keep_charged=0))
    assert await ledger(store) == []


@pytest.mark.parametrize(
    ("presumed", "real", "is_charged"),
    [
        ({"usd_micros": 5}, {"usd_micros": 7}, True),
        ({"usd_micros": 5}, {"usd_micros": 0}, True),
        ({"usd_micros": 5}, {}, True),
        ({}, {"images": 1}, True),
        ({"usd_micros": 5, "images": 1}, {"usd_micros": 5, "images": 1}, False),
        ({"usd_micros": 5}, {"usd_micros": 5, "images": 0}, False),
    ],
)
async def test_a_correction_is_charged_if_it_moved_anything(
    store: Store, presumed: dict[str, int], real: dict[str, int], *, is_charged: bool
) -> None:
    await store.execute(
        [
            commands.Reserve("p", "w", (), b""),
            commands.Settle("p", presumed, b"presumed", presumed=True),
            commands.Settle("p", real, b"late", correct=True),
        ]
    )
    await execute(store, trim(keep_free=0))
    assert (b"late" in await ledger(store)) == is_charged


# ── retention ───────────────────────────────────────────────────────────────────────────────


async def test_the_oldest_free_records_go_until_the_rest_fits(store: Store) -> None:
    await bought(store, "p", b"charged", usd_micros=1)
    await execute(store, Append((RECORD,) * 10))
    await execute(store, Append(numbered(5)))
    small = sum(len(record) + RECORD_OVERHEAD_BYTES for record in numbered(5))
    whole = await execute(store, trim())
    assert whole == Trimmed(0, 0, has_more=False, free_bytes=10 * RECORD_BYTES + small)
    left = await execute(store, trim(max_bytes=small + 2 * RECORD_BYTES + 1))
    assert left == Trimmed(8, 0, has_more=False, free_bytes=small + 2 * RECORD_BYTES)
    assert await ledger(store) == [b"charged", RECORD, RECORD, *numbered(5)]
    none = await execute(store, trim(max_bytes=0))
    assert (none.records, none.free_bytes) == (7, 0)
    await execute(store, Append((b"next",)))
    assert await ledger(store) == [b"charged", b"next"]


async def test_a_trim_removes_no_more_than_its_limit(store: Store) -> None:
    await execute(store, Append(numbered(450)))
    for expected in (200, 200, 50, 0):
        trimmed = await execute(store, trim(keep_free=0, limit=200))
        assert trimmed.records == expected
        assert trimmed.has_more == (expected == 200)


async def test_records_that_are_not_folded_stay(store: Store) -> None:
    """Charged ones for ever; free ones until they exceed the larger bound."""
    for i in range(6):
        await bought(store, f"p{i}", f"charged {i}".encode(), usd_micros=1)
        await execute(store, Append((f"free {i}".encode(),)))
    records, at = await ledger(store), await positions(store)

    nothing_folded = trim(keep_charged=0, keep_free=0, max_bytes=0, folded_to="")
    assert (await execute(store, nothing_folded)).records == 0
    folded = replace(nothing_folded, folded_to=at[5])
    assert (await execute(store, folded)).records == 6
    assert await ledger(store) == records[6:]
    assert (await execute(store, folded)).records == 0

    size = len(b"free 0") + RECORD_OVERHEAD_BYTES
    stuck = await execute(store, replace(folded, max_unfolded_bytes=2 * size))
    assert stuck == Trimmed(1, 1, has_more=False, free_bytes=2 * size)
    assert await ledger(store) == [records[6], *records[8:]]


async def test_a_day_is_a_position_to_fold_to(store: Store) -> None:
    await execute(store, Append((b"r",)))
    today = datetime.now(UTC)
    days = [f"{today + timedelta(days=d):%Y-%m-%d}/" for d in (-1, 0, 2)]
    removed = [
        (await execute(store, trim(keep_free=0, folded_to=day))).records for day in (*days, "")
    ]
    assert removed == [0, 0, 1, 0]


async def test_records_are_kept_for_their_time(sqlite_path: Path) -> None:
    clock = Clock()
    keep = trim(keep_charged=400 * DAY, keep_free=30 * DAY)
    async with open_sqlite_store(sqlite_path, clock=clock) as store:
        await bought(store, "p", b"charged", usd_micros=1)
        await execute(store, Append((b"free",)))
        for days, left in ((29, 2), (2, 1), (368, 1), (2, 0)):
            clock.now += days * DAY
            await execute(store, keep)
            assert len(await ledger(store)) == left


def add_day(client: redis.Redis, days_ago: int, kind: str, count: int) -> None:
    """A day of the ledger as it was written then."""
    start = int(time.time() // DAY - days_ago) * DAY
    day = f"{datetime.fromtimestamp(start, UTC):%Y-%m-%d}"
    with client.pipeline() as pipeline:
        for i in range(count):
            fields = {"record": f"{kind} {days_ago}"}
            pipeline.xadd(f"{BOOKS}ledger:{kind}:{day}", fields, id=f"{start * 1000}-{i}")
        pipeline.zadd(f"{BOOKS}ledger-days:{kind}", {day: 0})
        if kind == "free":
            size = count * (len(f"free {days_ago}") + RECORD_OVERHEAD_BYTES)
            pipeline.hincrby(f"{BOOKS}ledger", "free", size)
            pipeline.hincrby(f"{BOOKS}ledger", f"free:{day}", size)
        pipeline.execute()


async def test_redis_keeps_records_for_their_time(redis_url: str) -> None:
    """Days that are over go as a whole; that of the edge, record by record."""
    async with open_redis_store(redis_url) as store:
        with redis.Redis.from_url(redis_url) as client:
            for days_ago in (500, 400, 399, 31, 29, 1):
                add_day(client, days_ago, "charged", 3)
                add_day(client, days_ago, "free", 3)
            await execute(store, Append((b"today",)))
            keep = trim(keep_charged=400 * DAY, keep_free=30 * DAY)
            assert (await execute(store, keep)).records == 2 * 3 + 4 * 3
            left = [record.decode() for record in await ledger(store)]
            days = {"charged": (399, 31, 29, 1), "free": (29, 1)}
            assert sorted(set(left)) == sorted(
                [f"{kind} {day}" for kind in days for day in days[kind]] + ["today"]
            )
            await execute(store, trim(keep_charged=0, keep_free=0))
            assert await ledger(store) == []
            kept = {key.decode() for key in client.scan_iter(f"{BOOKS}ledger:*")}
            assert len(kept) == 1, "the stream of today"
            counted = client.hgetall(f"{BOOKS}ledger")
            assert {value for name, value in counted.items() if name[:4] == b"free"} == {b"0"}
            assert len(counted) <= 6


async def test_redis_removes_whole_days_at_once(redis_url: str) -> None:
    async with open_redis_store(redis_url) as store:
        with redis.Redis.from_url(redis_url) as client:
            for days_ago in (5, 4, 3):
                add_day(client, days_ago, "free", 5000)
            await execute(store, Append((b"today",)))
            before = _calls(client)
            trimmed = await execute(store, trim(max_bytes=5000 * 70))
            assert (trimmed.records, trimmed.has_more) == (10_001, False)
            assert _calls(client) - before < 60
            assert await ledger(store) == [*[b"free 3"] * 4999, b"today"]


def _calls(client: redis.Redis) -> int:
    """How many commands the server has run, those of scripts included."""
    return sum(stat["calls"] for stat in client.info("commandstats").values())


# ── bounded work ────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("count", [1000, 20_000])
async def test_redis_works_as_much_for_many_records_as_for_few(redis_url: str, count: int) -> None:
    async with open_redis_store(redis_url) as store:
        for i in range(count // 500):
            await execute(store, Append((RECORD,) * 500))
            await bought(store, f"p{i}", RECORD, usd_micros=1)
        with redis.Redis.from_url(redis_url) as client:
            work = []
            for command in (
                trim(),
                trim(keep_free=0, limit=200),
                commands.ReadLedger(limit=100),
                commands.ReadLedgerBack(limit=100),
            ):
                before = _calls(client)
                await execute(store, command)
                work.append(_calls(client) - before)
    assert work[0] < 20
    assert work[1] < 30
    assert work[2] < 12
    assert work[3] < 12


@pytest.mark.parametrize("count", [1000, 50_000])
def test_sqlite_works_as_much_for_many_records_as_for_few(sqlite_path: Path, count: int) -> None:
    db = connect(sqlite_path)
    tx = Transaction(db, time.time(), time.time())
    for _ in range(count // 500):
        execute_in(tx, Append((RECORD,) * 500))
    half = db.execute("SELECT position FROM ledger_free LIMIT 1 OFFSET ?", (count // 2,))
    after = f"2026-01-01/{half.fetchone()[0]}"
    execute_in(tx, Append((), (refusals(),)))
    for command in (
        trim(),
        trim(keep_free=0, limit=200),
        commands.ReadLedger(after, 100),
        commands.ReadLedgerBack(after, 100),
        Append((RECORD,) * 10, (refusals(),)),
        commands.AppendRefusals(10),
    ):
        assert _steps(db, tx, command) < 12_000, command
    db.close()


def _steps(db: sqlite3.Connection, tx: Transaction, command: Any) -> int:
    """The instructions of SQLite's virtual machine that a command takes."""
    steps = 0

    def count() -> None:
        nonlocal steps
        steps += 10

    db.set_progress_handler(count, 10)
    execute_in(tx, command)
    db.set_progress_handler(None, 10)
    return steps


async def test_a_full_redis_can_be_trimmed(server: Server) -> None:  # noqa: F811 - a fixture
    """And takes records again afterwards."""
    async with open_redis_store(server.url) as store:
        await bought(store, "p", b"charged", usd_micros=1)
        for _ in range(10):
            await execute(store, Append((RECORD,) * 500))
        another = Append((b"r",), (refusals(),))
        with server.client() as client:
            client.config_set("maxmemory", 1)
            with pytest.raises(StoreFull):
                await execute(store, another)
            trimmed = await execute(store, trim(max_bytes=100 * RECORD_BYTES, limit=10_000))
            client.config_set("maxmemory", 0)
        assert trimmed == Trimmed(4900, 0, has_more=False, free_bytes=100 * RECORD_BYTES)
        assert await execute(store, another)
        assert len(await ledger(store)) == 102


# ── a plateau ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.timed
@pytest.mark.timeout(180)
@usually_on("sqlite", "open_store")
async def test_300_000_free_records_reach_a_plateau(store: Store, request: Any) -> None:
    """The store's own memory, or its file, stays within a fifth of the bound and a constant."""
    bound, batch = 8 << 20, (b"r" * 400,) * 500
    measured, trimming = [], 0.0
    for i in range(600):
        await execute(store, Append(batch))
        if i % 4 == 3:
            started = time.perf_counter()
            while (await execute(store, trim(max_bytes=bound))).has_more:
                continue
            trimming += time.perf_counter() - started
        if i % 100 == 99:
            measured.append(await asyncio.to_thread(_ledger_bytes, request))
    assert all(bound * 0.7 < bytes_ < bound * 1.2 + (1 << 20) for bytes_ in measured), measured
    assert 300_000 / trimming > 5000


def _ledger_bytes(request: Any) -> int:
    """What the store needs for the ledger: measured, not counted."""
    if "redis" in request.node.name:
        with redis.Redis.from_url(request.getfixturevalue("redis_server")) as client:
            keys: Sequence[bytes] = list(client.scan_iter(f"{BOOKS}ledger:*"))
            return sum(client.memory_usage(key, samples=0) or 0 for key in keys)
    path: Path = request.getfixturevalue("sqlite_path")
    return path.stat().st_size
