"""Totals and tail are the sum of the records, compared with plain Python on each store."""

from __future__ import annotations

import asyncio
import gc
import json
import random
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, ClassVar
from zoneinfo import ZoneInfo

import pytest
import structlog.testing

from gateway.billing.totals import Bucket, Totals, TotalsRow, TotalsSettings
from gateway.billing.totals_periods import Series
from gateway.errors import StoreUnavailable
from gateway.images import Record
from gateway.store.batch import execute
from gateway.store.commands import (
    MAX_INCREMENTS,
    Append,
    FoldTotals,
    ReadLedger,
    ReadTotals,
)
from gateway.store.protocol import Command, Store

NOON = datetime(2026, 11, 28, 12, tzinfo=ZoneInfo("UTC")).timestamp()
HOUR, DAY = 3600.0, 86_400.0
BUCKETS: Sequence[Bucket] = ("quarter", "day_in_zone", "day_in_utc")
EVER = (0.0, NOON + 4000 * DAY)


@dataclass
class Unreadable:
    """Counts as the metrics do."""

    records: int = 0

    def unreadable(self, records: int) -> None:
        self.records += records


def totals_of(store: Store, *, zone: str = "UTC", worker: str = "w", **given: Any) -> Totals:
    observer = given.pop("observer", Unreadable())
    settings = TotalsSettings(time_zone=zone, **given)
    return Totals(store, settings, worker=worker, observer=observer)


def record(**given: Any) -> Record:
    one: dict[str, Any] = {"id": "r", "request_id": "r", "key": "alice", "key_id": "k1"}
    return Record(**{**one, "time": NOON, "outcome": "bought", "model": "m", **given})


def bought(**given: Any) -> Record:
    paid = {"images": 1, "cost_micros": 40_000, "tokens": {"text_in": 9, "image_out": 1000}}
    paid["costs"] = {"text_in": 45, "image_out": 39_955}
    return record(**{**paid, "size": "1024x1024", "quality": "high", **given})


async def append(store: Store, records: Iterable[Record | bytes]) -> None:
    encoded = tuple(r if isinstance(r, bytes) else r.encode() for r in records)
    await execute(store, Append(encoded))


async def read(
    totals: Totals, bucket: Bucket = "day_in_utc", *, since: float = 0.0, until: float = EVER[1]
) -> list[TotalsRow]:
    return await totals.read(
        max(since, NOON - 40 * DAY), min(until, NOON + 40 * DAY), bucket=bucket
    )


def whole(rows: Iterable[TotalsRow]) -> dict[str, int]:
    """All sums of all rows."""
    sums: Counter[str] = Counter()
    for row in rows:
        for name in ("requests", "hits", "images_bought", "images_served"):
            sums[name] += getattr(row.sums, name)
        for name in ("cost_micros", "saved_micros", "presumed_micros"):
            sums[name] += getattr(row.sums, name)
        for kind, count in row.sums.tokens.items():
            sums[kind] += count
        for kind, micros in row.sums.costs.items():
            sums[f"cost of {kind}"] += micros
    return {name: amount for name, amount in sums.items() if amount}


# ── one record ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("is_folded", [False, True])
@pytest.mark.parametrize("bucket", BUCKETS)
async def test_a_record_is_in_every_report_before_and_after_it_is_folded(
    store: Store, bucket: Bucket, *, is_folded: bool
) -> None:
    totals = totals_of(store, zone="Asia/Kolkata")
    await append(store, [bought(team="art", time=NOON + 0.5)])
    if is_folded:
        assert await totals.fold() == 1
    (row,) = await read(totals, bucket)
    assert row.dimensions == {
        "key": "alice",
        "key_id": "k1",
        "team": "art",
        "model": "m",
        "size": "1024x1024",
        "quality": "high",
        "outcome": "bought",
    }
    assert whole([row]) == {
        "requests": 1,
        "images_bought": 1,
        "cost_micros": 40_000,
        "text_in": 9,
        "image_out": 1000,
        "cost of text_in": 45,
        "cost of image_out": 39_955,
    }
    begins = {"quarter": NOON, "day_in_utc": NOON - 12 * HOUR, "day_in_zone": NOON - 17.5 * HOUR}
    assert row.starts_at == begins[bucket]


async def test_a_hit_and_refusals_are_counted_without_cost(store: Store) -> None:
    totals = totals_of(store)
    hit = record(outcome="hit", images_served=2, saved_micros=80_000)
    await append(store, [hit, record(outcome="refused", count=600, model=None)])
    await totals.fold()
    assert whole(await read(totals)) == {
        "requests": 601,
        "hits": 1,
        "images_served": 2,
        "saved_micros": 80_000,
    }


async def test_a_correction_counts_in_the_hour_of_its_purchase(store: Store) -> None:
    totals = totals_of(store)
    presumed = bought(
        outcome="failed",
        flags=("presumed",),
        cost_micros=90_000,
        tokens={"estimated": 9000},
        costs={"estimated": 90_000},
    )
    late = bought(
        corrects="r",
        flags=("late",),
        cost_micros=40_000 - 90_000,
        images=0,
        tokens={"text_in": 9, "image_out": 1000, "estimated": -9000},
        presumed_micros=-90_000,
        costs={"text_in": 45, "image_out": 39_955, "estimated": -90_000},
    )
    await append(store, [presumed])
    await totals.fold()
    assert whole(await read(totals))["presumed_micros"] == 90_000
    await append(store, [late])
    await totals.fold()
    rows = await read(totals, "quarter")
    assert {row.starts_at for row in rows} == {NOON}
    assert whole(rows) == {
        "requests": 1,
        "images_bought": 1,
        "cost_micros": 40_000,
        "text_in": 9,
        "image_out": 1000,
        "cost of text_in": 45,
        "cost of image_out": 39_955,
    }


async def test_kinds_of_tokens_and_dimensions_that_do_not_exist_yet_are_counted(
    store: Store,
) -> None:
    data = bought().to_dict()
    data["tokens"]["cached_in"] = 7
    data["costs"]["cached_in"] = 3
    data |= {"labels": {"project": "x", "cost_center": "y"}, "a_new_field": [1]}
    totals = totals_of(store)
    await append(store, [json.dumps(data).encode()])
    await totals.fold()
    (row,) = await read(totals)
    assert row.dimensions["labels"] == {"cost_center": "y", "project": "x"}
    assert row.sums.tokens == {"text_in": 9, "image_out": 1000, "cached_in": 7}
    assert row.sums.costs == {"text_in": 45, "image_out": 39_955, "cached_in": 3}


async def test_the_costs_of_kinds_add_up_and_older_records_have_none(store: Store) -> None:
    per_image = bought(tokens={}, costs={"image": 40_000})
    older = bought(costs={})
    totals = totals_of(store)
    await append(store, [per_image, per_image, older])
    for _ in range(2):
        for bucket in BUCKETS:
            (row,) = await read(totals, bucket)
            assert (row.sums.cost_micros, row.sums.costs) == (120_000, {"image": 80_000})
        await totals.fold()


@pytest.mark.parametrize(
    "broken",
    [
        b"",
        b"\xff\x00",
        b"[]",
        b"null",
        b"{}",
        b'{"time": NaN}',
        b'{"time": 1e300, "key": "a", "key_id": "k", "outcome": "hit"}',
        b'{"time": -1, "key": "a", "key_id": "k", "outcome": "hit"}',
        b'{"time": true, "key": "a", "key_id": "k", "outcome": "hit"}',
        b'{"time": "1", "key": "a", "key_id": "k", "outcome": "hit"}',
        b'{"time": 1, "key": 5, "key_id": "k", "outcome": "hit"}',
        b'{"time": 1, "key": "a", "key_id": "k", "outcome": "hit", "cost_micros": 1.5}',
        b'{"time": 1, "key": "a", "key_id": "k", "outcome": "hit", "cost_micros": 1e300}',
        b'{"time": 1, "key": "a", "key_id": "k", "outcome": "hit", "tokens": [1]}',
        b'{"time": 1, "key": "a", "key_id": "k", "outcome": ["hit"]}',
        b'{"time": 1, "key": "a", "key_id": "k", "costs": {"image": 0.5}}',
        b'{"time": 1, "key": "a", "key_id": "k", "costs": [1]}',
        b'{"time": 1, "key": "a", "key_id": "k", "outcome": "hit", "user": {"a": 1}}',
    ],
)
async def test_an_unreadable_record_is_counted_and_logged_and_stops_nothing(
    store: Store, broken: bytes
) -> None:
    counted = Unreadable()
    totals = totals_of(store, observer=counted)
    await append(store, [bought(), broken, bought()])
    with structlog.testing.capture_logs() as logs:
        assert await totals.fold_page() == 3
        assert await totals.fold_page() == 0
        assert whole(await read(totals))["requests"] == 2
    assert counted.records == 1
    assert [line["event"] for line in logs] == ["record_unreadable"]


# ── folding ─────────────────────────────────────────────────────────────────────────────────


class Interrupted:
    """A store that fails before a command or after it, as if its answer was lost."""

    def __init__(self, store: Store, chance: random.Random) -> None:
        self._store = store
        self._chance = chance
        self.name, self.kept = store.name, store.kept

    async def execute(self, commands: Sequence[Command[Any]]) -> list[Any]:
        outcome = self._chance.random()
        if outcome < 0.15:
            raise StoreUnavailable
        results = await self._store.execute(commands)
        if outcome < 0.3:
            raise StoreUnavailable
        await asyncio.sleep(0)
        return results

    def watch(self, flight: str) -> Any:
        return self._store.watch(flight)


@dataclass
class Oracle:
    """What the totals of some records are, by bucket, dimensions and name."""

    zone: str
    records: list[Record] = field(default_factory=list)

    def sums(self, bucket: Bucket) -> dict[tuple[Any, ...], int]:
        found: Counter[tuple[Any, ...]] = Counter()
        for r in self.records:
            zone = ZoneInfo(self.zone if bucket == "day_in_zone" else "UTC")
            local = datetime.fromtimestamp(r.time, zone)
            begins = local.replace(hour=0, minute=0, second=0, microsecond=0, fold=0).timestamp()
            if bucket == "quarter":
                begins = r.time // 900 * 900
            row = (begins, r.key_id, r.team, r.model, r.size, r.quality, r.outcome)
            requests = 0 if r.corrects else r.count or 1
            found[*row, "requests"] += requests
            found[*row, "hits"] += requests if r.outcome == "hit" else 0
            found[*row, "images_bought"] += r.images
            found[*row, "images_served"] += r.images_served or 0
            found[*row, "cost_micros"] += r.cost_micros
            found[*row, "saved_micros"] += r.saved_micros
            for kind, count in r.tokens.items():
                found[*row, kind] += count
            for kind, micros in r.costs.items():
                found[*row, f"cost of {kind}"] += micros
        return {row: amount for row, amount in found.items() if amount}


def by_name(rows: Iterable[TotalsRow]) -> dict[tuple[Any, ...], int]:
    found: Counter[tuple[Any, ...]] = Counter()
    for row in rows:
        names = ("key_id", "team", "model", "size", "quality", "outcome")
        dimensions = tuple(row.dimensions.get(name) for name in names)
        named = {
            name: getattr(row.sums, name)
            for name in ("requests", "hits", "images_bought", "images_served")
        }
        named |= {name: getattr(row.sums, name) for name in ("cost_micros", "saved_micros")}
        named |= {f"cost of {kind}": micros for kind, micros in row.sums.costs.items()}
        for name, amount in {**named, **row.sums.tokens}.items():
            found[row.starts_at, *dimensions, name] += amount
    return {row: amount for row, amount in found.items() if amount}


def random_record(chance: random.Random) -> Record:
    outcome = chance.choice(["hit", "bought", "bought", "refused", "failed", "collapsed"])
    one = record(
        time=NOON + chance.choice([0, 0, 1, -3, 10]) * DAY + chance.uniform(-2 * HOUR, 2 * HOUR),
        key_id=chance.choice(["k1", "k2", "k3"]),
        team=chance.choice([None, "art", "design"]),
        model=chance.choice(["m1", "m2", None]),
        size=chance.choice(["1024x1024", None]),
        user=chance.choice([None, "u1", "u2"]),
        outcome=outcome,
    )
    if outcome == "refused":
        return one.but(count=chance.choice([None, 1, 600]))
    if outcome == "hit":
        return one.but(images_served=chance.randrange(1, 4), saved_micros=chance.randrange(9999))
    cost = chance.randrange(99_999)
    if chance.random() < 0.2:
        estimated = {"estimated": -chance.randrange(99)}
        return one.but(
            corrects="r", cost_micros=-cost, tokens=estimated, costs={"estimated": -cost}
        )
    costs = {"text_in": cost // 3, "image_out": cost - cost // 3} if cost else {}
    tokens = {"text_in": chance.randrange(1, 99)}
    return one.but(cost_micros=cost, images=1, tokens=tokens, costs=costs)


@pytest.mark.parametrize("seed", range(6))
async def test_totals_and_tail_are_the_records_whatever_interrupts_folding(
    store: Store, seed: int
) -> None:
    chance = random.Random(seed)
    zone = chance.choice(["UTC", "Asia/Kolkata", "America/New_York", "Pacific/Apia"])
    oracle = Oracle(zone)
    folders = [
        totals_of(Interrupted(store, chance), zone=zone, worker=str(worker)) for worker in range(2)
    ]

    async def fold_somehow(totals: Totals) -> None:
        for _ in range(6):
            try:
                await totals.fold_page(chance.choice([1, 2, 7, 30]))
            except StoreUnavailable:
                await asyncio.sleep(0)

    async def write_and_read() -> None:
        reader = totals_of(store, zone=zone)
        for _ in range(4):
            added = [random_record(chance) for _ in range(chance.randrange(1, 40))]
            await append(store, added)
            oracle.records += added
            bucket = chance.choice(BUCKETS)
            assert by_name(await read(reader, bucket)) == oracle.sums(bucket)

    for _ in range(3):
        await asyncio.gather(write_and_read(), *map(fold_somehow, folders))
    reader = totals_of(store, zone=zone)
    while await reader.fold_page(11):
        continue
    for bucket in BUCKETS:
        assert by_name(await read(reader, bucket)) == oracle.sums(bucket)
    users = await reader.read(NOON - 40 * DAY, NOON + 40 * DAY, bucket="day_in_zone", by_user=True)
    assert sum(row.sums.requests for row in users) == sum(
        amount for row, amount in oracle.sums("quarter").items() if row[-1] == "requests"
    )


async def test_a_fold_whose_answer_was_lost_counts_nothing_twice(store: Store) -> None:
    totals = totals_of(store)
    await append(store, [bought()])
    ((position, _),) = await execute(store, ReadLedger())
    await totals.fold_page()
    assert await execute(store, FoldTotals("", position, ())) is False
    assert await execute(store, FoldTotals("", position + "9", ())) is False
    assert await totals.folded_to() == position
    assert whole(await read(totals))["requests"] == 1


async def test_one_worker_folds_at_a_time(store: Store) -> None:
    first, second = totals_of(store, worker="1"), totals_of(store, worker="2")
    await append(store, [bought()])
    assert await first.fold() == 1
    await append(store, [bought()])
    assert await second.fold() == 0  # it is still the first one's turn


async def test_the_checkpoint_is_the_last_folded_record(store: Store) -> None:
    totals = totals_of(store)
    assert await totals.folded_to() == ""
    await append(store, [bought(), bought()])
    await totals.fold()
    assert await totals.folded_to() == (await execute(store, ReadLedger()))[-1][0]


# ── bounds ──────────────────────────────────────────────────────────────────────────────────


async def test_a_client_that_invents_sizes_gets_a_bounded_number_of_rows(store: Store) -> None:
    totals = totals_of(store)
    await append(store, [bought(size=f"{i}x{i}", key_id="k2") for i in range(1200)])
    await append(store, [bought(size="1024x1024")])
    while await totals.fold_page():
        continue
    rows = await read(totals, "quarter")
    assert Counter(row.dimensions["key_id"] for row in rows) == {"k2": 1001, "k1": 1}
    (other,) = [row for row in rows if row.dimensions["size"] == "other"]
    assert other.dimensions == {
        "key": "alice",
        "key_id": "k2",
        "model": "other",
        "size": "other",
        "quality": "other",
        "outcome": "bought",
    }
    assert other.sums.requests == 200
    # A row that is there goes on, a new one stays `other`, in the tail too.
    await append(store, [bought(size="0x0", key_id="k2"), bought(size="new", key_id="k2")])
    for _ in range(2):
        rows = await read(totals, "quarter")
        counts = {row.dimensions["size"]: row.sums.requests for row in rows if len(rows) == 1002}
        assert (counts["0x0"], counts["other"]) == (2, 201)
        await totals.fold_page()


async def test_a_thousand_users_of_a_key_and_day_have_rows_and_the_others_share_one(
    store: Store,
) -> None:
    totals = totals_of(store)
    await append(store, [record(user=f"user-{i}") for i in range(1100)])
    await append(store, [record(), record(user="next day", time=NOON + DAY)])
    while await totals.fold_page():
        continue
    rows = await totals.read(NOON - DAY, NOON + 2 * DAY, bucket="day_in_utc", by_user=True)
    counts = {row.dimensions.get("user"): row.sums.requests for row in rows}
    assert (len(rows), counts["other"], counts[None], counts["next day"]) == (1003, 100, 1, 1)


async def test_long_values_do_not_become_long_rows(store: Store) -> None:
    totals = totals_of(store)
    await append(store, [bought(model="m" * 10_000, user="u" * 1_000_000, team="t" * 1000)])
    await totals.fold_page()
    (row,) = await read(totals)
    assert (row.dimensions["model"], len(row.dimensions["team"])) == ("other", 256)
    (user,) = await totals.read(NOON - DAY, NOON + DAY, bucket="day_in_utc", by_user=True)
    assert len(user.dimensions["user"]) == 256


async def test_rows_past_their_time_go_and_the_others_stay(store: Store) -> None:
    totals = totals_of(store, keep_days_seconds=5 * DAY, keep_users_seconds=3 * DAY)
    now = datetime.now(ZoneInfo("UTC")).timestamp()
    ages = [0, 60, 70, 1000]
    await append(store, [bought(time=now - age * DAY, user="u") for age in ages])
    await totals.fold_page()
    await totals.remove_expired()
    found = await totals.read(now - 1100 * DAY, now + DAY, bucket="quarter")
    assert len(found) == 2
    assert len(await totals.read(now - 1100 * DAY, now + DAY, bucket="day_in_utc")) == 1
    users = await totals.read(now - 1100 * DAY, now + DAY, bucket="day_in_utc", by_user=True)
    assert len(users) == 1


async def test_a_removed_period_leaves_nothing_in_the_store(store: Store) -> None:
    totals = totals_of(store)
    await append(store, [bought(time=NOON - 3000 * DAY, size=str(i)) for i in range(1100)])
    while await totals.fold_page():
        continue
    await totals.remove_expired()
    for series in (Series("quarter", "UTC"), Series("day", "UTC"), Series("user", "UTC")):
        period, _ = series.place(NOON - 3000 * DAY)
        assert list((await execute(store, ReadTotals(period.name))).rows) == []


# ── reading ─────────────────────────────────────────────────────────────────────────────────


async def test_a_report_has_each_record_once_although_it_is_folded_meanwhile(store: Store) -> None:
    """One folder never rests while reports are read page by page."""
    totals = totals_of(store)
    await append(store, [bought(size=str(i % 400)) for i in range(3000)])
    is_done = False

    async def fold() -> None:
        while not is_done:
            await totals.fold_page(37)
            await append(store, [bought(size=str(random.randrange(500)))])

    async def report() -> None:
        nonlocal is_done
        lowest = 3000
        for _ in range(12):
            before = (await execute(store, ReadLedger("", 100_000)))[-1][0]
            requests = sum(row.sums.requests for row in await read(totals, "quarter"))
            records = await execute(store, ReadLedger("", 100_000))
            settled = sum(position <= before for position, _ in records)
            assert settled <= requests <= len(records)
            assert requests >= lowest
            lowest = requests
        is_done = True

    await asyncio.gather(fold(), report())


async def test_a_report_is_bounded_by_the_begin_of_its_buckets(store: Store) -> None:
    totals = totals_of(store)
    times = [NOON - 1, NOON, NOON + 899, NOON + 900]
    await append(store, [bought(time=time) for time in times])
    for _ in range(2):
        rows = await read(totals, "quarter", since=NOON, until=NOON + 900)
        assert [(row.starts_at, row.sums.requests) for row in rows] == [(NOON, 2)]
        await totals.fold_page()
    assert await totals.read(NOON, NOON, bucket="quarter") == []


# ── days ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("zone", "day", "hours"),
    [
        ("Europe/Berlin", "2026-03-29", 23),
        ("Europe/Berlin", "2026-10-25", 25),
        ("Asia/Kolkata", "2026-11-28", 24),
        ("Asia/Kathmandu", "2026-11-28", 24),
        ("Australia/Lord_Howe", "2026-10-04", 23.5),
        ("America/Santiago", "2026-09-06", 23),  # begins at 01:00
        ("America/Havana", "2026-11-01", 25),  # has midnight twice
        ("Pacific/Kiritimati", "2026-11-28", 24),
    ],
)
async def test_a_day_has_its_hours(store: Store, zone: str, day: str, hours: float) -> None:
    totals = totals_of(store, zone=zone)
    first = datetime.fromisoformat(day).replace(tzinfo=ZoneInfo(zone)).timestamp()
    quarters = int(hours * 4)
    await append(
        store, [bought(time=first + 900 * i, size=str(i)) for i in range(-1, quarters + 1)]
    )
    for _ in range(2):
        rows = await totals.read(first, first + 1, bucket="day_in_zone")
        assert {row.starts_at for row in rows} == {first}
        assert sum(row.sums.requests for row in rows) == quarters
        await totals.fold_page()


async def test_another_time_zone_begins_rows_of_its_own(store: Store) -> None:
    await append(store, [bought()])
    await totals_of(store, zone="Asia/Kolkata").fold_page()
    await append(store, [bought()])
    moved = totals_of(store, zone="Europe/Berlin")
    await moved.fold_page()
    assert whole(await read(moved, "day_in_zone"))["requests"] == 1
    assert whole(await read(totals_of(store, zone="Asia/Kolkata"), "day_in_zone"))["requests"] == 1
    assert whole(await read(moved, "day_in_utc"))["requests"] == 2


# ── speed ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.long
@pytest.mark.timed
@pytest.mark.timeout(120)
async def test_folding_keeps_up_with_a_thousand_records_a_second(store: Store) -> None:
    """Of 100 keys with 5 models and 50 users each, in a time zone other than UTC."""
    chance, count = random.Random(1), 20_000
    totals = totals_of(store, zone="Asia/Kolkata")
    for _ in range(count // 500):
        await append(
            store,
            [
                bought(
                    key_id=f"k{(key := chance.randrange(100))}",
                    key=f"key-{key}",
                    model=f"m{chance.randrange(5)}",
                    user=f"u{chance.randrange(50)}",
                    outcome=chance.choice(["hit", "hit", "bought"]),
                )
                for _ in range(500)
            ],
        )
    longest, is_done = 0.0, False

    async def measure_loop() -> None:
        nonlocal longest
        while not is_done:
            begin = time.thread_time()  # what others on this machine take is none of ours
            await asyncio.sleep(0)
            longest = max(longest, time.thread_time() - begin)

    gc.freeze()  # as a worker does: the collector does not look at what was imported
    try:
        measuring = asyncio.create_task(measure_loop())
        begin = time.perf_counter()
        while await totals.fold_page():
            continue
        seconds = time.perf_counter() - begin
        is_done = True
        await measuring
    finally:
        gc.unfreeze()
    assert count / seconds > 1000
    assert longest < 0.025


async def test_a_step_has_a_bounded_number_of_increments(store: Store) -> None:
    class Counting:
        """Notes how many increments each step has."""

        name = store.name
        watch = store.watch
        increments: ClassVar[list[int]] = []

        async def execute(self, commands: Sequence[Command[Any]]) -> list[Any]:
            self.increments += [len(c.increments) for c in commands if isinstance(c, FoldTotals)]
            return await store.execute(commands)

    totals = totals_of(Counting(), zone="Asia/Kolkata")
    await append(store, [bought(key_id=f"k{i}", user=f"u{i}") for i in range(1000)])
    assert await totals.fold_page() == 1000
    assert sum(Counting.increments) == 5000
    assert max(Counting.increments) <= MAX_INCREMENTS
