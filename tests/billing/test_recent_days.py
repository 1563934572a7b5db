"""The days in memory are those of the totals, whatever happens meanwhile. On both stores."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from datetime import timedelta
from functools import cache
from itertools import islice
from zoneinfo import ZoneInfo

import pytest

from gateway.billing import recent_days
from gateway.billing.recent_days import COST, SAVED, RecentDays, RecentView
from gateway.billing.totals import Totals, TotalsSettings
from gateway.calendar import Calendar
from gateway.images import Record
from gateway.metrics import Metrics
from gateway.store.batch import execute
from gateway.store.commands import LEDGER_END, ReadBooks, TrimLedger
from gateway.store.protocol import Store
from tests.conftest import OpenStore
from tests.month import RecordWriter, TrafficKey, traffic

ZONE = "America/New_York"
CALENDAR = Calendar(ZoneInfo(ZONE))
NOW = 1_795_965_000.0
"""2026-11-29 in New York."""
KEYS = (TrafficKey("alice", "art", {}, "1"), TrafficKey("bob", None, {}, "2"))


@pytest.fixture
async def store(open_store: OpenStore) -> AsyncIterator[Store]:
    async with open_store() as opened:
        yield opened


def open_totals(store: Store) -> Totals:
    settings = TotalsSettings(time_zone=ZONE)
    return Totals(store, settings, worker="w", observer=Metrics().money)


def records(count: int, *, days: float = 65, until: float = NOW, seed: int = 1) -> list[Record]:
    found = traffic(until - days * 86_400, until, seed=seed, requests=count, keys=KEYS)
    return list(islice(found, count))


async def read(days: RecentDays, now: float = NOW) -> RecentView:
    view = await days.read(now, patience_seconds=30)
    assert view is not None
    return view


@cache
def day(time: float) -> float:
    """The begin of its day. Cached, because a test checks the same records many times."""
    return CALENDAR.start_of(CALENDAR.date_at(time))


def check(view: RecentView, written: list[Record]) -> None:
    by_day: dict[float, list[Record]] = {}
    for record in written:
        by_day.setdefault(day(record.time), []).append(record)
    for ago in range(30):
        one = view.day(view.today - timedelta(days=ago))
        of = by_day.get(one.starts_at, [])
        assert one.sums.cost_micros == sum(record.cost_micros for record in of), ago
        assert one.sums.requests == sum((r.count or 1) for r in of if r.corrects is None), ago
    first = view.today.replace(day=1)
    before = (first - timedelta(days=1)).replace(day=1)
    for code, field in ((COST, "cost_micros"), (SAVED, "saved_micros")):
        for since, until in ((before, first), (first, view.today + timedelta(days=1))):
            begin, end = CALENDAR.start_of(since), CALENDAR.start_of(until)
            wanted = sum(getattr(r, field) for r in written if begin <= r.time < end)
            assert view.micros(code, since, until) == wanted
    first_day = view.last_days()[0].starts_at
    recent = [record for begin, of in by_day.items() if begin >= first_day for record in of]
    for spender in view.top("key", 5):
        of = [record for record in recent if record.key == spender.name]
        assert spender.cost_micros == sum(record.cost_micros for record in of)
        assert spender.saved_micros == sum(record.saved_micros for record in of)


async def test_the_sums_are_those_of_the_records_while_they_are_folded(store: Store) -> None:
    chance, written = random.Random(3), records(900)
    totals, writer = open_totals(store), RecordWriter(store)
    days = RecentDays(store, totals, CALENDAR)
    assert not days.is_read
    done = 0
    while done < len(written):
        count = chance.randrange(1, 200)
        await writer.write(written[done : done + count])
        done += count
        await asyncio.gather(totals.fold_page(chance.randrange(1, 100)), read(days))
        check(await read(days), written[:done])
        if chance.random() < 0.3:
            days = RecentDays(store, totals, CALENDAR)


async def test_only_new_records_are_read_until_the_day_ends(store: Store) -> None:
    totals, writer, written = open_totals(store), RecordWriter(store), records(50)
    days = RecentDays(store, totals, CALENDAR)
    await writer.write(written)
    view = await read(days)
    more = records(50, days=0.001, seed=2)
    await writer.write(more)
    assert await read(days) is view
    check(view, [*written, *more])
    tomorrow = CALENDAR.start_of(view.today + timedelta(days=1)) + 1.0
    later = await read(days, tomorrow)
    assert later is not view
    check(later, [*written, *more])


async def test_records_that_were_removed_unread_are_in_the_totals(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    totals, writer, written = open_totals(store), RecordWriter(store), records(20)
    days = RecentDays(store, totals, CALENDAR)
    await writer.write(written)
    view = await read(days)
    more = records(60, days=1, seed=2)
    await writer.write(more)
    while await totals.fold_page():
        continue
    await execute(store, TrimLedger(0, 0, 0, 0, folded_to=LEDGER_END))
    again = await read(days)
    assert again is not view
    check(again, [*written, *more])
    # Nor are too many read one by one.
    monkeypatch.setattr(recent_days, "MAX_BEHIND", 10)
    many = records(30, days=1, seed=3)
    await writer.write(many)
    last = await read(days)
    assert last is not again
    check(last, [*written, *more, *many])


async def test_bills_above_their_estimate_are_counted(store: Store) -> None:
    totals, writer, written = open_totals(store), RecordWriter(store), records(3, days=0.5)
    days = RecentDays(store, totals, CALENDAR)
    flagged = [
        record.but(id=f"{record.id}-{n}", flags=("over_estimate",), cost_micros=5, outcome="bought")
        for n, record in enumerate(written)
    ]
    await writer.write([written[0], flagged[0]])
    # The store's clock decides which records are of the last day.
    now = (await execute(store, ReadBooks())).now
    view = await read(days, now)
    assert view.over_estimates(0) == 1
    await writer.write([*written[1:], *flagged[1:]])
    view = await read(days, now)
    assert view.over_estimates(0) == 3
    assert view.over_estimates(NOW + 1) == 0


async def test_without_patience_the_sums_are_those_of_a_moment_ago(store: Store) -> None:
    totals, writer, written = open_totals(store), RecordWriter(store), records(50)
    days = RecentDays(store, totals, CALENDAR)
    await writer.write(written)
    assert await days.read(NOW, patience_seconds=0) is None
    view = await read(days)
    assert await days.read(NOW, patience_seconds=0) is view
    assert await days.read(NOW + 2 * 86_400, patience_seconds=0) is None
