"""The books are proven to agree, online, and each difference is named with both sums."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import structlog.testing

from gateway.billing import counted_limits, quota, totals, verified_totals
from gateway.billing.ledger_reader import Difference
from gateway.billing.totals import Totals, TotalsSettings
from gateway.billing.totals_periods import Series
from gateway.billing.verification import (
    Verification,
    VerificationSettings,
    Verified,
    read_verified,
)
from gateway.billing.zone_changes import note_time_zone
from gateway.calendar import UTC_CALENDAR, Calendar
from gateway.images import Amounts, Record
from gateway.limits import CALENDAR_PERIODS
from gateway.store.batch import Batch, execute
from gateway.store.commands import (
    Append,
    FoldTotals,
    Increment,
    ReadTotalsState,
    Reserve,
    TrimLedger,
)
from gateway.store.protocol import Store
from gateway.store.redis.store import open_redis_store
from gateway.store.sqlite.connection import connect
from gateway.store.sqlite.store import open_sqlite_store
from tests.billing.test_totals import Unreadable, totals_of
from tests.processor import longest_pause_seconds
from tests.redis_masters import open_owner
from tests.stores import TOPOLOGIES

HOUR, DAY = 3600.0, 86_400.0
COST = Amounts(images=1, tokens=9, usd_micros=40_000)

Open = Callable[[str], AbstractAsyncContextManager[Store]]
Edit = Callable[[str, str], None]


@pytest.fixture(params=["sqlite", "redis", *TOPOLOGIES])
def store_url(request: pytest.FixtureRequest) -> str | None:
    """None is the embedded store."""
    if request.param == "sqlite":
        return None
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url


@pytest.fixture
def opening(store_url: str | None, request: pytest.FixtureRequest) -> Open:
    """Opens the test's store with the windows of a time zone."""
    if store_url is None:
        path = request.getfixturevalue("sqlite_path")
        return lambda zone: open_sqlite_store(path, calendar=Calendar(ZoneInfo(zone)))
    return lambda zone: open_redis_store(store_url, calendar=Calendar(ZoneInfo(zone)))


@pytest.fixture
async def store(opening: Open) -> AsyncIterator[Store]:
    async with opening("UTC") as opened:
        yield opened


@pytest.fixture
def edit(store: Store, store_url: str | None, request: pytest.FixtureRequest) -> Edit:
    """Changes the store behind the gateway's back: a statement of SQL, or a script for Redis."""

    def run(sql: str, lua: str) -> None:
        if store_url is None:
            db = connect(request.getfixturevalue("sqlite_path"), read_only=False)
            db.execute(sql)
            db.close()
            return
        with open_owner(store_url, "igw:{books}") as client:
            client.eval(f"local BOOKS = 'igw:{{books}}:'\n{lua}", 0)

    return run


def verification_of(
    store: Store, *, is_full: bool = True, zone: str = "UTC", keys: tuple[str, ...] = ("a",)
) -> Verification:
    async def subjects() -> list[tuple[str, str | None]]:
        return [(key, "art") for key in keys]

    settings = VerificationSettings(time_zone=zone)
    return Verification(store, settings, worker="v", subjects=subjects, is_full=is_full, rest=0.0)


async def reserve(store: Store, purchase: str, key: str = "a", amounts: Amounts = COST) -> float:
    by_unit = counted_limits.by_unit(amounts)
    subjects = (f"key:{key}", "team:art", "everyone")
    reservation = await execute(
        store, Reserve(purchase, "w", (), b"payload", subjects=subjects, amounts=by_unit)
    )
    return reservation.reserved_at


async def settle(
    store: Store, purchase: str, at: float, key: str = "a", charge: Amounts = COST, **more: Any
) -> None:
    options = {name: more.pop(name) for name in ("presumed", "correct") if name in more}
    record = Record(
        id=purchase,
        request_id=purchase,
        time=at,
        key=key,
        key_id=key,
        team="art",
        model="m",
        outcome="bought",
        images=charge.images,
        tokens={"image_out": charge.tokens} if charge.tokens else {},
        cost_micros=charge.usd_micros,
        costs={"image_out": charge.usd_micros} if charge.usd_micros else {},
    ).but(**more)
    batch = Batch(store)
    quota.settle(batch, purchase, charge, record=record, **options)
    await batch.execute()


async def buy(store: Store, purchase: str, key: str = "a", **more: Any) -> None:
    at = await reserve(store, purchase, key)
    await settle(store, purchase, at, key, **more)


async def fold(store: Store, *, zone: str = "UTC") -> None:
    totals = totals_of(store, zone=zone)
    while await totals.fold_page():
        continue


# ── books that agree ────────────────────────────────────────────────────────────────────────


async def test_empty_books_agree(store: Store) -> None:
    verified = await verification_of(store).run()
    assert verified.is_balanced
    # Of three subjects: how many there are besides today's three depends on the date.
    assert verified.windows >= 3 * 3
    assert verified.windows % 3 == 0
    assert (verified.records, verified.not_compared) == (0, ())


@pytest.mark.parametrize("zone", ["UTC", "Asia/Kathmandu"])
@pytest.mark.parametrize("is_full", [True, False])
async def test_purchases_corrections_hits_and_open_purchases_agree(
    opening: Open, zone: str, *, is_full: bool
) -> None:
    """Whether or not they are folded; the second run only reads what is new."""
    async with opening(zone) as store:
        await _check_that_purchases_agree(store, zone, is_full=is_full)


async def _check_that_purchases_agree(store: Store, zone: str, *, is_full: bool) -> None:
    await note_time_zone(store, zone, time.time())
    verification = verification_of(store, is_full=is_full, zone=zone)
    await buy(store, "p")
    at = await reserve(store, "late")
    await settle(store, "late", at, presumed=True, flags=("presumed",))
    await fold(store, zone=zone)
    await settle(
        store,
        "late",
        at,
        charge=Amounts(1, 7, 30_000),
        correct=True,
        corrects="late",
        images=0,
        cost_micros=-10_000,
        presumed_micros=-40_000,
        tokens={"estimated": -9, "image_out": 7},
        costs={"image_out": -10_000},
    )
    await execute(store, Append((b'{"id":"h","time":1,"key":"a","key_id":"a","outcome":"hit"}',)))
    await reserve(store, "open")
    verified = await verification.run()
    assert verified.shown == ()
    assert verified.is_balanced
    assert (verified.records, verified.purchases, verified.not_compared) == (3, 1, ())
    assert verified.slots >= (3 if zone == "UTC" else 5)
    await buy(store, "q", "b")
    verified = await verification.run()
    assert (verified.is_balanced, verified.records) == (True, 1)


class Stepping:
    """A store at each of whose steps some purchases may begin.

    A verification reads until it has all. If all keys bought as fast as they can, most of the time
    it would read what they buy meanwhile.
    """

    def __init__(self, store: Store) -> None:
        self.name, self.watch = store.name, store.watch
        self.turns = asyncio.Semaphore(0)
        self._store = store

    def let_buy(self) -> None:
        for _ in range(3):
            self.turns.release()

    async def execute(self, commands: Any) -> Any:
        self.let_buy()
        return await self._store.execute(commands)


async def test_the_books_agree_while_purchases_and_folding_go_on(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Turns as short as the pauses of this folding, so that both sides often get one.
    monkeypatch.setattr(totals, "TURN_SECONDS", 0.2)
    monkeypatch.setattr(verified_totals, "TURN_SECONDS", 0.2)
    monkeypatch.setattr(verified_totals, "LOOK_SECONDS", 0.02)
    is_over = False
    stepping, bought = Stepping(store), Counter[str]()

    async def buy_all_the_time(key: str) -> None:
        while not is_over:
            await stepping.turns.acquire()
            await buy(store, f"{key}{bought[key]}", key)
            bought[key] += 1

    async def fold_all_the_time() -> None:
        totals = Totals(store, TotalsSettings(), worker="folding", observer=Unreadable())
        while not is_over:
            await totals.fold()
            await asyncio.sleep(0.05)

    buyers = [asyncio.create_task(buy_all_the_time(key)) for key in "abc"]
    folding = asyncio.create_task(fold_all_the_time())
    try:
        verification = verification_of(stepping, is_full=False, keys=("a", "b", "c"))
        runs = 0
        while runs < 2 or bought.total() <= 30:
            verified = await verification.run()
            assert verified.shown == ()
            runs += 1
            await asyncio.sleep(0.1)
    finally:
        is_over = True
        stepping.let_buy()
        await asyncio.gather(*buyers, folding)
    assert (await verification_of(store).run()).is_balanced


# ── differences ─────────────────────────────────────────────────────────────────────────────


def named(verified: Verified) -> set[tuple[str, str, str, int, int]]:
    return {(d.book, d.subject, d.unit, d.expected, d.found) for d in verified.shown}


async def test_a_counter_that_differs_is_named_with_its_window_and_both_sums(
    store: Store, edit: Edit
) -> None:
    await buy(store, "p")
    today = UTC_CALENDAR.day_at(time.time()).windows["day"].label
    edit(
        "UPDATE windows SET spent = spent + 5 WHERE subject = 'team:art' AND period = 'day'"
        " AND unit = 'usd_micros'",
        f"redis.call('HINCRBY', BOOKS .. 'window:team:art:day:{today}', 'usd_micros:spent', 5)",
    )
    verified = await verification_of(store).run()
    assert verified.shown == (
        Difference("spent", "team:art", f"day {today}", "usd_micros", 40_000, 40_005),
    )
    assert not verified.is_balanced


async def test_a_window_that_is_lost_and_one_without_records_are_differences(
    store: Store, edit: Edit
) -> None:
    await buy(store, "p")
    edit(
        "DELETE FROM windows WHERE subject = 'everyone'",
        "for _, key in ipairs(redis.call('KEYS', BOOKS .. 'window:everyone:*')) do"
        " redis.call('DEL', key) end",
    )
    verified = await verification_of(store).run()
    assert named(verified) == {
        ("spent", "everyone", "images", 1, 0),
        ("spent", "everyone", "tokens", 9, 0),
        ("spent", "everyone", "usd_micros", 40_000, 0),
    }
    assert verified.differences == 3 * len(CALENDAR_PERIODS)


async def test_a_record_that_is_lost_differs_from_every_other_book(
    store: Store, edit: Edit
) -> None:
    await buy(store, "p")
    await fold(store)
    edit(
        "DELETE FROM ledger_charged",
        "for _, key in ipairs(redis.call('KEYS', BOOKS .. 'ledger:charged:*')) do"
        " redis.call('XTRIM', key, 'MAXLEN', 0) end",
    )
    verified = await verification_of(store).run()
    assert ("spent", "key:a", "usd_micros", 0, 40_000) in named(verified)
    assert ("running total", "team:art", "usd_micros", 0, 40_000) in named(verified)
    assert ("totals", "key:a", "usd_micros", 0, 40_000) in named(verified)


async def test_what_stays_reserved_without_a_purchase_is_a_difference(
    store: Store, edit: Edit
) -> None:
    await reserve(store, "p")
    edit(
        "DELETE FROM journals",
        "for _, key in ipairs(redis.call('KEYS', BOOKS .. 'journal:*')) do"
        " redis.call('DEL', key) end redis.call('DEL', BOOKS .. 'open:w')",
    )
    verified = await verification_of(store).run()
    assert ("reserved", "key:a", "usd_micros", 0, 40_000) in named(verified)
    assert {book for book, *_ in named(verified)} == {"reserved"}


async def test_money_of_another_key_in_the_totals_is_a_difference(store: Store) -> None:
    """The sum of all keys is right."""
    await buy(store, "p")
    await buy(store, "q", "b")
    totals = totals_of(store)
    checkpoint = (await execute(store, ReadTotalsState())).checkpoint
    step: list[FoldTotals] = []

    class Swapping:
        name, watch = store.name, store.watch

        async def execute(self, commands: Any) -> Any:
            step.extend(one for one in commands if isinstance(one, FoldTotals))
            return await store.execute([c for c in commands if not isinstance(c, FoldTotals)]) or [
                True
            ]

    totals._store = Swapping()
    await totals.fold_page()
    (fold_both,) = step
    swapped = tuple(
        one.__class__(
            one.period,
            one.slot,
            one.group,
            one.row,
            one.other,
            {**one.sums, "c": one.sums["c"] + (1 if one.group.startswith("a") else -1)},
        )
        for one in fold_both.increments
    )
    await execute(store, FoldTotals(checkpoint, fold_both.checkpoint, swapped))
    verified = await verification_of(store).run()
    assert named(verified) == {
        ("totals", "key:a", "usd_micros", 40_000, 40_001),
        ("totals", "key:b", "usd_micros", 40_000, 39_999),
    }


# ── what cannot be compared ─────────────────────────────────────────────────────────────────


async def test_windows_with_removed_records_are_named_and_no_difference(store: Store) -> None:
    await buy(store, "p")
    await fold(store)
    folded_to = (await execute(store, ReadTotalsState())).checkpoint
    await execute(store, TrimLedger(0.0, 0.0, 10**9, 10**9, folded_to))
    verification = verification_of(store)
    verified = await verification.run()
    assert verified.is_balanced
    assert any("not kept any more" in note for note in verified.not_compared)
    assert any("running totals" in note for note in verified.not_compared)
    await buy(store, "q")
    verified = await verification.run()
    assert verified.is_balanced
    assert verified.running_totals > 0


async def test_another_time_zone_is_no_difference(store: Store) -> None:
    """A purchase while the zone is changing may be in the window of either."""
    now = time.time()
    await note_time_zone(store, "Pacific/Kiritimati", now - 60)
    await note_time_zone(store, "UTC", now)  # as the windows of this store are
    await buy(store, "p")
    assert (await verification_of(store).run()).shown == ()


async def test_an_unreadable_record_is_named(store: Store) -> None:
    await reserve(store, "p")
    batch = Batch(store)
    quota.settle(batch, "p", Amounts(), record=None)
    await batch.execute()
    at = await reserve(store, "q")
    await settle(store, "q", at, time=-1.0)
    verified = await verification_of(store).run()
    assert len(verified.unreadable) == 1
    assert not verified.is_balanced


# ── the result ──────────────────────────────────────────────────────────────────────────────


async def test_the_last_results_are_kept_in_the_store(store: Store, edit: Edit) -> None:
    assert await read_verified(store) == []
    full = await verification_of(store).run()
    recent = await verification_of(store, is_full=False).run()
    assert await read_verified(store) == [full, recent]
    await buy(store, "p")
    edit("DELETE FROM running_totals", "redis.call('DEL', BOOKS .. 'running-totals')")
    with structlog.testing.capture_logs() as logs:
        again = await verification_of(store).run()
    assert await read_verified(store) == [again, recent]
    assert [line["event"] for line in logs] == ["ledger_unbalanced"]


# ── the event loop ──────────────────────────────────────────────────────────────────────────


@pytest.mark.timed
async def test_a_report_and_a_verification_never_block_the_event_loop(store: Store) -> None:
    """Not even of keys that have something in every quarter of an hour."""
    series, checkpoint = Series("quarter", "UTC"), ""
    yesterday = time.time() // DAY * DAY - DAY
    sums = {"r": 3, "h": 1, "b": 2, "v": 1, "c": 80_000, "s": 40_000, "ti": 300, "io": 34_000}
    sums |= {"k_ti": 1500, "k_io": 78_500}
    places = [series.place(yesterday + quarter * 900) for quarter in range(96)]
    for number in range(100):
        key = f"k{number}"
        row = json.dumps({"key_id": key})
        increments = tuple(Increment(*place, key, row, "other", sums) for place in places)
        position = f"2026-11-28/{number:03}"
        assert await execute(store, FoldTotals(checkpoint, position, increments))
        checkpoint = position
    for work in (
        lambda: totals_of(store).read(yesterday, yesterday + DAY, bucket="quarter"),
        lambda: verification_of(store, is_full=False).run(),
    ):
        assert min([await longest_pause_seconds(work()) for _ in range(3)]) < 0.010
