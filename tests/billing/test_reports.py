"""Reports are sums of ledger records, compared with plain Python on each store."""

from __future__ import annotations

import asyncio
import csv
import io
import itertools
import json
import random
import time
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import fields, replace
from datetime import datetime, timedelta
from functools import cache
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.billing import reports as module
from gateway.billing.focus_export import FocusExport, FocusSettings
from gateway.billing.record_amounts import Sums
from gateway.billing.reports import (
    GENERATION,
    ReportQuery,
    ReportRefused,
    ReportRow,
    Reports,
    ReportSettings,
)
from gateway.billing.totals import Totals, TotalsSettings
from gateway.billing.totals_periods import Series
from gateway.billing.zone_changes import note_time_zone
from gateway.calendar import Calendar
from gateway.errors import GatewayError
from gateway.images import Record
from gateway.store.batch import execute
from gateway.store.commands import Append, FoldTotals, Increment, Reserve, Settle, TrimLedger
from gateway.store.protocol import Store
from tests.billing.test_totals import Unreadable, append, bought, record

UTC = ZoneInfo("UTC")
NOW = datetime(2026, 11, 28, 12, tzinfo=UTC).timestamp()
HOUR, DAY = 3600.0, 86_400.0
AMOUNTS = [f.name for f in fields(Sums) if f.name not in ("tokens", "costs")]


def reports_of(
    store: Store, *, zone: str = "UTC", now: float = NOW, **kept: float
) -> tuple[Reports, Totals]:
    totals = Totals(store, TotalsSettings(time_zone=zone), worker="w", observer=Unreadable())
    settings = ReportSettings(time_zone=zone, **kept)
    return Reports(store, totals, settings, clock=lambda: now), totals


async def reserve_and_settle(store: Store, charged: Record) -> None:
    """Appends a record as a charged one."""
    await execute(store, Reserve(charged.id, "w", (), b""))
    amounts = {"usd_micros": charged.cost_micros}
    await execute(store, Settle(charged.id, amounts, charged.encode()))


def query(**given: Any) -> ReportQuery:
    return ReportQuery(**{"since": NOW - 7 * DAY, "until": NOW, **given})


def table(rows: Iterable[ReportRow]) -> dict[tuple[Any, ...], dict[str, int]]:
    """Begin and values of the groups → amounts that are not 0."""
    return {
        (row.starts_at, *row.dimensions.values()): {
            name: amount
            for name, amount in {
                **{name: getattr(row.sums, name) for name in AMOUNTS},
                **row.sums.tokens,
                **{f"cost of {kind}": cost for kind, cost in row.sums.costs.items()},
            }.items()
            if amount
        }
        for row in rows
    }


async def test_a_report_without_groups_is_one_row_of_everything(store: Store) -> None:
    reports, totals = reports_of(store)
    cost = {"costs": {"text_in": 10_000, "image_out": 30_000}}
    await append(store, [bought(time=NOW - DAY, **cost), record(time=NOW - 1, outcome="hit")])
    for _ in range(2):
        (row,) = await reports.run(query())
        assert (row.dimensions, row.starts_at, row.ends_at) == ({}, NOW - 7 * DAY, NOW)
        assert (row.sums.requests, row.sums.hits, row.sums.cost_micros) == (2, 1, 40_000)
        assert row.sums.costs == {"text_in": 10_000, "image_out": 30_000}
        await totals.fold_page()


async def test_a_report_without_records_has_no_rows(store: Store) -> None:
    reports, _ = reports_of(store)
    for width in ("minute", "hour", "day", "all"):
        assert await reports.run(query(since=NOW - DAY, bucket=width)) == []


async def test_groups_are_labels_users_and_what_was_requested(store: Store) -> None:
    reports, totals = reports_of(store)
    art, none = {"cost_center": "4711", "x": "1"}, {"x": "2"}
    await append(
        store,
        [
            bought(time=NOW - HOUR, team="art", user="ann", labels=art),
            bought(time=NOW - HOUR, team="art", user="bob", labels=art, quality="low"),
            bought(time=NOW - HOUR, labels=none),
        ],
    )
    await totals.fold_page()

    async def requests(*groups: str, **given: Any) -> dict[tuple[str | None, ...], int]:
        rows = await reports.run(query(group_by=groups, **given))
        return {tuple(row.dimensions.values()): row.sums.requests for row in rows}

    assert await requests("label:cost_center") == {(None,): 1, ("4711",): 2}
    assert await requests("team", "source") == {(None, GENERATION): 1, ("art", GENERATION): 2}
    assert await requests("user", "quality") == {
        (None, "high"): 1,
        ("ann", "high"): 1,
        ("bob", "low"): 1,
    }
    assert await requests("user", filters={"label:x": frozenset({"1"})}) == {
        ("ann",): 1,
        ("bob",): 1,
    }
    assert await requests("key_id", filters={"team": frozenset({""})}) == {("k1",): 1}


# ── all queries ─────────────────────────────────────────────────────────────────────────────

ZONES = ("UTC", "Europe/Berlin", "Asia/Kolkata", "Australia/Lord_Howe", "America/Havana")
PLACES = [
    *(("sqlite", zone) for zone in ZONES),
    ("redis", "Australia/Lord_Howe"),
    *(
        pytest.param("redis", zone, marks=pytest.mark.long)
        for zone in ZONES
        if zone != "Australia/Lord_Howe"
    ),
]
"""Store and time zone of all queries: the store only gives what the report adds up."""
GROUPS = ("team", "key", "user", "model", "size", "quality", "outcome", "source", "label:cc")


def value_of(r: Record, name: str) -> str | None:
    named = {"source": GENERATION, "label:cc": r.labels.get("cc")}
    return named[name] if name in named else getattr(r, name)


def expected(
    records: Sequence[Record], asked: ReportQuery, buckets: Sequence[tuple[float, float]]
) -> dict[tuple[Any, ...], dict[str, int]]:
    """What the rows of a report are: each record in the bucket of its time and in its group."""
    found: dict[tuple[Any, ...], Counter[str]] = defaultdict(Counter)
    begins = [starts for starts, _ in buckets]
    assert begins == sorted(begins)
    for r in records:
        place = bisect_right(begins, r.time) - 1
        is_inside = place >= 0 and r.time < buckets[place][1]
        is_chosen = all((value_of(r, n) or "") in values for n, values in asked.filters.items())
        if not is_inside or not is_chosen:
            continue
        sums = found[(begins[place], *(value_of(r, name) for name in asked.group_by))]
        requests = 0 if r.corrects else r.count or 1
        sums["requests"] += requests
        sums["hits"] += requests * (r.outcome == "hit")
        sums["images_bought"] += r.images
        sums["images_served"] += r.images_served or 0
        sums["cost_micros"] += r.cost_micros
        sums["saved_micros"] += r.saved_micros
        for kind, count in r.tokens.items():
            sums[kind] += count
    return {row: {n: a for n, a in sums.items() if a} for row, sums in found.items()}


def records_around(moments: Sequence[float], chance: random.Random, count: int) -> list[Record]:
    found = []
    for _ in range(count):
        outcome = chance.choice(["hit", "bought", "refused", "failed"])
        one = record(
            time=chance.choice(moments) + chance.uniform(-30 * HOUR, 30 * HOUR),
            key=(key := chance.choice(["a", "b"])),
            key_id=f"id-{key}",
            team=chance.choice([None, "art", "design"]),
            user=chance.choice([None, "u1", "u2"]),
            model=chance.choice([None, "m1", "m2"]),
            size=chance.choice([None, "1024x1024"]),
            quality=chance.choice([None, "high", "low"]),
            labels=chance.choice([{}, {"cc": "1"}, {"cc": "2", "x": "y"}]),
            outcome=outcome,
        )
        if outcome == "hit":
            one = one.but(images_served=2, saved_micros=chance.randrange(9999))
        if outcome == "bought":
            one = one.but(images=1, cost_micros=chance.randrange(9999), tokens={"text_in": 7})
        if outcome == "refused":
            one = one.but(count=chance.choice([None, 5]))
        if outcome == "failed" and chance.random() < 0.5:
            one = one.but(corrects="r", cost_micros=-chance.randrange(999))
        found.append(one)
    return found


@st.composite
def queries(draw: st.DrawFn) -> ReportQuery:
    width = draw(st.sampled_from(["minute", "hour", "day", "all"]))
    longest = {"minute": 20, "hour": 24 * 20, "day": 24 * 25, "all": 24 * 25}[width]
    ends = draw(st.floats(0, 3 * DAY)) if draw(st.booleans()) else float(draw(st.integers(0, 72)))
    ends = NOW - (ends * HOUR if ends == int(ends) else ends)
    begins = ends - draw(st.integers(1, longest)) * HOUR
    if draw(st.booleans()):
        begins = begins // DAY * DAY
    values = st.sampled_from(["", "art", "a", "u1", "m1", "high", "hit", "1", "design"])
    return ReportQuery(
        begins,
        ends,
        width,  # type: ignore[arg-type]
        zone=draw(st.sampled_from(["zone", "utc"])),
        group_by=tuple(draw(st.lists(st.sampled_from(GROUPS), unique=True, max_size=4))),
        filters=draw(
            st.dictionaries(st.sampled_from(GROUPS), st.frozensets(values, min_size=1), max_size=1)
        ),
    )


@cache
def drawn_queries() -> Sequence[ReportQuery]:
    """The same for each store and zone. To draw them takes as long as to answer them."""
    drawn: list[ReportQuery] = []

    @settings(max_examples=60, deadline=None, derandomize=True, database=None)
    @given(queries())
    def collect(asked: ReportQuery) -> None:
        drawn.append(asked)

    collect()
    return drawn


@pytest.mark.parametrize(("open_store", "zone"), PLACES, indirect=["open_store"])
async def test_each_query_has_the_sums_of_its_records(store: Store, zone: str) -> None:
    chance = random.Random(zone)
    reports, totals = reports_of(store, zone=zone)
    moments = [NOW - day * DAY for day in (0, 1, 2, 3, 10, 20)]
    records = records_around(moments, chance, 150)
    await append(store, records[:100])
    while await totals.fold_page():
        continue
    await append(store, records[100:])
    checked, fields_refused = 0, set()

    for asked in drawn_queries():
        try:
            rows = await reports.run(asked)
        except ReportRefused as refused:
            fields_refused.add(refused.field)
            continue
        buckets = list(reports.buckets(asked))
        assert table(rows) == expected(records, asked, buckets), asked
        assert {(row.starts_at, row.ends_at) for row in rows} <= set(buckets)
        checked += 1
    assert checked > 40
    assert fields_refused <= {"bucket", "since"}


@pytest.mark.parametrize("zone", ZONES)
@pytest.mark.parametrize("width", ["hour", "day"])
async def test_buckets_are_without_gaps_from_before_the_begin_to_after_the_end(
    store: Store, zone: str, width: Any
) -> None:
    now = datetime(2026, 11, 10, tzinfo=UTC).timestamp()  # October has clock changes
    reports, _ = reports_of(store, zone=zone, now=now)
    asked = query(since=now - 30 * DAY + 7, until=now - 3 * DAY + 7, bucket=width)
    buckets = list(reports.buckets(asked))
    assert buckets[0][0] <= asked.since < buckets[0][1]
    assert buckets[-1][0] < asked.until <= buckets[-1][1]
    assert all(before[1] == after[0] for before, after in itertools.pairwise(buckets))
    if width == "day":
        local = [datetime.fromtimestamp(begin, ZoneInfo(zone)) for begin, _ in buckets]
        days = [moment.date() for moment in local]
        assert days == [days[0] + timedelta(days=i) for i in range(len(days))]


async def test_days_of_23_and_25_hours_have_all_their_hours(store: Store) -> None:
    berlin = ZoneInfo("Europe/Berlin")
    for day, hours in (("2026-03-29", 23), ("2026-10-25", 25)):
        begin = datetime.fromisoformat(day).replace(tzinfo=berlin)
        now = (begin + timedelta(days=3)).timestamp()
        reports, totals = reports_of(store, zone="Europe/Berlin", now=now)
        await append(
            store, [bought(time=begin.timestamp() + HOUR * i + 1) for i in range(-1, hours + 1)]
        )
        await totals.fold_page()
        asked = query(
            since=begin.timestamp(), until=(begin + timedelta(days=1)).timestamp(), bucket="day"
        )
        (row,) = await reports.run(asked)
        assert row.sums.requests == hours
        assert row.ends_at - row.starts_at == hours * HOUR
        by_hour = await reports.run(query(since=asked.since, until=asked.until, bucket="hour"))
        assert [r.sums.requests for r in by_hour] == [1] * hours


# ── what is refused ─────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("asked", "field", "says"),
    [
        ({"since": NOW, "until": NOW - 1}, "until", "after the start"),
        ({"since": NOW, "until": NOW}, "until", "after the start"),
        ({"since": float("nan")}, "until", "after the start"),
        ({"since": 1e30, "until": 1e31}, "since", "a time before 2026-11-28"),
        ({"since": NOW - 900 * DAY, "bucket": "day"}, "since", "2024-09-20T00:00:00+05:30"),
        ({"since": NOW - 70 * DAY, "bucket": "hour"}, "since", "2026-09-28T00:00:00+05:30"),
        ({"since": NOW - 70 * DAY, "bucket": "all"}, "since", "whole days go back further"),
        ({"since": NOW - 31 * DAY, "bucket": "minute"}, "since", "2026-10-30T00:00:00+05:30"),
        (
            {"since": NOW - 31 * DAY, "bucket": "hour", "group_by": ("user",)},
            "since",
            "keep_free_records",
        ),
        ({"since": NOW - 2 * DAY, "bucket": "minute"}, "bucket", "'hour' or more for 2 days"),
        ({"since": NOW - 40 * DAY, "bucket": "hour"}, "bucket", "'day' or more for 40 days"),
        ({"group_by": ("modle",)}, "group_by", "Did you mean 'model'?"),
        ({"group_by": ("label:",)}, "group_by", "label:NAME"),
        ({"group_by": ("key", "key")}, "group_by", "each group once"),
        ({"group_by": tuple(f"label:{i}" for i in range(17))}, "group_by", "at most 16"),
        ({"filters": {"colour": frozenset({"red"})}}, "filters", "one of team, key"),
    ],
)
async def test_a_query_without_an_answer_names_its_field(
    store: Store, asked: dict[str, Any], field: str, says: str
) -> None:
    reports, _ = reports_of(store, zone="Asia/Kolkata")
    with pytest.raises(ReportRefused) as refused:
        await reports.run(query(**asked))
    assert refused.value.field == field
    assert says in str(refused.value)


async def test_a_report_of_records_that_were_removed_for_their_bytes_is_refused(
    store: Store,
) -> None:
    """Their requests and what they saved would be missing, and nothing would say so."""
    now = time.time()
    reports, totals = reports_of(store, now=now)
    hit = record(time=now - HOUR, outcome="hit", user="ann", saved_micros=5, images_served=1)
    await append(store, [hit])
    while await totals.fold_page():
        continue
    since, by_user = now - 2 * HOUR, ("user", "model")
    (whole,) = await reports.run(query(since=since, until=now))
    (same,) = await reports.run(query(since=since, until=now, group_by=by_user))
    assert same.sums == whole.sums
    trim = TrimLedger(400 * DAY, 30 * DAY, 0, 10**6, await totals.folded_to())
    assert (await execute(store, trim)).records == 1
    assert await reports.run(query(since=since, until=now)) == [whole]
    for asked in (query(since=since, group_by=by_user), query(since=since, bucket="minute")):
        with pytest.raises(ReportRefused, match="free_records_bytes") as refused:
            await reports.run(replace(asked, until=now))
        assert refused.value.field == "since"
    later = reports_of(store, now=now + 2 * HOUR)[0]
    begin = query(since=now + HOUR, until=now + 2 * HOUR, group_by=by_user)
    assert await later.run(begin) == []
    month = reports_of(store, now=now + 31 * DAY)[0]  # it would be gone for its age too
    assert await month.run(query(since=now + 1.5 * DAY, until=now + 2 * DAY, bucket="minute")) == []


async def test_the_first_bucket_of_records_is_complete_or_refused(store: Store) -> None:
    """Records go one by one when they are past their time, in the middle of a day."""
    reports, _ = reports_of(store)
    await append(store, [bought(time=NOW - 30 * DAY + 60, user="ann")])
    by_user = query(since=NOW - 30 * DAY + 30, group_by=("user", "model"), bucket="day")
    with pytest.raises(ReportRefused, match="2026-10-30T00:00:00"):
        await reports.run(by_user)
    (row,) = await reports.run(replace(by_user, bucket="minute", until=NOW - 30 * DAY + 90))
    assert row.sums.requests == 1


async def test_days_from_before_a_change_of_the_time_zone_are_complete(store: Store) -> None:
    """Made of quarter hours, or by user of records; refused where there are neither."""
    now = time.time()
    in_utc, totals = reports_of(store, now=now)
    await note_time_zone(store, "UTC", 0.0)
    changed_at = now - 12 * HOUR
    moments = [now - 1 - hours * HOUR for hours in range(0, 24 * 9, 5)]
    # Rows of days in the new zone are complete from the first midnight an hour after the change.
    before = [moment for moment in moments if moment < changed_at]
    await append(store, [bought(time=moment, user="ann") for moment in before])
    while await totals.fold_page():
        continue
    await note_time_zone(store, "Asia/Kolkata", changed_at)
    reports, folding = reports_of(store, zone="Asia/Kolkata", now=now)
    after = moments[: -len(before)]
    await append(store, [bought(time=moment, user="ann") for moment in after])
    while await folding.fold_page():
        continue
    first = int(Calendar(ZoneInfo("Asia/Kolkata")).day_at(now - 6 * DAY).starts_at)
    expected = sum(moment >= first for moment in moments)
    for groups in ((), ("key",), ("user",), ("user", "model")):
        for width in ("all", "day", "hour"):
            asked = query(since=first, until=now + 1, bucket=width, group_by=groups)
            rows = await reports.run(asked)
            assert sum(row.sums.requests for row in rows) == expected, asked
            if width == "day":
                assert {row.starts_at for row in rows} == {first + day * DAY for day in range(7)}
    for groups, days in ((("user",), 40), (("key",), 70)):
        old = query(since=first - days * DAY, until=now, group_by=groups, bucket="day")
        with pytest.raises(ReportRefused, match="time_zone") as refused:
            await reports.run(old)
        assert refused.value.field == "since"
        assert await in_utc.run(old)
    seller = FocusSettings(time_zone="Asia/Kolkata", provider="api", account="default")
    export = FocusExport(store, folding, seller, clock=lambda: now)
    month = datetime.fromtimestamp(now, ZoneInfo("Asia/Kolkata"))
    begin = month.replace(day=1, hour=0, minute=0, second=0, microsecond=0).timestamp()
    text = b"".join([piece async for piece in export.pieces(export.parse(f"{month:%Y-%m}", None))])
    lines = csv.DictReader(io.StringIO(text.decode(), newline=""))
    billed = sum(round(float(line["BilledCost"]) * 1_000_000) for line in lines)
    assert billed == sum(moment >= begin for moment in moments) * bought().cost_micros


@pytest.mark.parametrize("offset", [0, 7, 450, 900, 3601])
async def test_reports_of_one_range_agree_whatever_they_are_grouped_by(
    store: Store, offset: int
) -> None:
    """From the minute of one record to that of another; each is by user or not by user."""
    reports, _ = reports_of(store)
    times = [NOW - 5 * HOUR + step * 311 for step in range(40)]
    await append(store, [bought(time=moment, user="ann") for moment in times])
    asked = query(since=NOW - 4 * HOUR + offset, until=NOW - 3 * HOUR + offset)
    groups = ((), ("key",), ("user",), ("user", "model"))
    found = [await reports.run(replace(asked, group_by=group)) for group in groups]
    assert len({(row.starts_at, row.ends_at, row.sums.requests) for (row,) in found}) == 1


async def test_costs_by_user_and_model_go_back_as_far_as_charged_records(store: Store) -> None:
    reports, _ = reports_of(store)
    old = NOW - 90 * DAY
    await execute(store, Append((record(time=NOW - HOUR, outcome="hit").encode(),)))
    await reserve_and_settle(store, bought(time=old, user="ann"))
    by_item = query(since=old, bucket="day", zone="utc", group_by=("user", "model"))
    with pytest.raises(ReportRefused, match="keep_free_records"):
        await reports.run(by_item)
    (row,) = await reports.run(replace(by_item, costs_only=True))
    assert row.sums.cost_micros == bought().cost_micros
    with pytest.raises(ReportRefused, match="keep_records"):
        await reports.run(replace(by_item, since=NOW - 401 * DAY, costs_only=True))


async def test_a_report_has_a_bounded_number_of_rows(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_ROWS", 10)
    reports, _ = reports_of(store)
    await append(store, [bought(time=NOW - HOUR, key_id=f"k{i}", user=f"u{i}") for i in range(11)])
    for groups in (("key_id",), ("user", "size")):
        with pytest.raises(ReportRefused, match="at most 10 rows"):
            await reports.run(query(group_by=groups))


async def test_a_report_reads_a_bounded_number_of_records(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_RECORDS", 10)
    reports, _ = reports_of(store)
    await append(store, [bought(time=NOW - HOUR) for _ in range(11)])
    with pytest.raises(ReportRefused, match="later time"):
        await reports.run(query(since=NOW - DAY, bucket="minute"))


@pytest.mark.parametrize("width", ["minute", "day"])
async def test_few_reports_read_at_once_some_wait_and_further_ones_are_refused(
    store: Store, width: Any
) -> None:
    reports, _ = reports_of(store)
    await append(store, [bought(time=NOW - HOUR)])
    asked = query(since=NOW - DAY, bucket=width)
    most = (module.MAX_SCANS if width == "minute" else module.MAX_READS) + module.MAX_WAITING
    for _ in range(2):
        found = await asyncio.gather(
            *(reports.run(asked) for _ in range(most + 3)), return_exceptions=True
        )
        refused = [answer for answer in found if isinstance(answer, GatewayError)]
        assert [error.status for error in refused] == [503] * 3
        assert sum(isinstance(answer, list) and len(answer) == 1 for answer in found) == most


@pytest.mark.long
@pytest.mark.timed
async def test_a_month_of_a_million_requests_is_reported_within_a_second(store: Store) -> None:
    """Of 100 keys with 10 rows a day each, as the totals have them."""
    reports, _ = reports_of(store)
    series, checkpoint = Series("day", "UTC"), ""
    for count, (day, key) in enumerate(itertools.product(range(30), range(100))):
        period, slot = series.place(NOW - day * DAY)
        rows = [
            json.dumps({"key_id": f"k{key}", "team": f"t{key % 7}", "model": f"m{m}"})
            for m in range(10)
        ]
        sums = {"r": 34, "b": 34, "c": 1_000_000, "ti": 300, "io": 34_000, "k_io": 1_000_000}
        increments = tuple(Increment(period, slot, f"k{key}", r, "other", sums) for r in rows)
        position = f"2026-01-01/{count:09}"
        assert await execute(store, FoldTotals(checkpoint, position, increments))
        checkpoint = position
    begin = time.perf_counter()
    found = await reports.run(query(since=NOW // DAY * DAY - 29 * DAY, group_by=("team",)))
    assert time.perf_counter() - begin < 1
    assert sum(row.sums.requests for row in found) == 30 * 100 * 10 * 34 == 1_020_000
    assert sum(row.sums.cost_micros for row in found) == 30 * 100 * 10 * 1_000_000
