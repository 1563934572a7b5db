"""Windows of several subjects in any calendar, lost reservations, and running totals.

On each store, with the commands that `billing.quota` makes.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.billing import quota
from gateway.billing.ledger import draft
from gateway.billing.running_totals import limit_subjects, running_totals
from gateway.calendar import UTC_CALENDAR, Calendar
from gateway.errors import StoreUnavailable
from gateway.images import Amounts, Principal, Record
from gateway.limits import CALENDAR_PERIODS
from gateway.store.batch import Batch, execute
from gateway.store.commands import (
    Append,
    CompareAndSet,
    Consumption,
    Counter,
    OpenJournals,
    PeekCounters,
    ReadFirstCharges,
    ReadLedger,
    ReadRunningTotals,
    Reservation,
    Reserve,
    RunningTotal,
    Settle,
    Settlement,
    Write,
)
from gateway.store.protocol import Store
from gateway.store.redis.store import open_redis_store
from gateway.store.sqlite.connection import connect
from gateway.store.sqlite.store import open_sqlite_store
from tests.moved_calendar import MovedCalendar, before_new_year
from tests.principals import make_principal
from tests.stores import TOPOLOGIES
from tests.waiting import eventually

UNITS = ("images", "tokens", "usd_micros")
ESTIMATE = Amounts(images=2, tokens=900, usd_micros=5000)
COST = Amounts(images=2, tokens=700, usd_micros=4321)
NOTHING = Amounts()
DAY = 86_400

Open = Callable[..., AbstractAsyncContextManager[Store]]


@pytest.fixture(params=["sqlite", "redis", *TOPOLOGIES])
def opening(request: pytest.FixtureRequest) -> Open:
    """Opens the test's store with a calendar, and a clock for the gateway of a Redis."""
    if request.param == "sqlite":
        path: Path = request.getfixturevalue("sqlite_path")
        return lambda calendar=UTC_CALENDAR: open_sqlite_store(path, calendar=calendar)
    url: str = request.getfixturevalue(f"{request.param}_url")
    return lambda calendar=UTC_CALENDAR, **more: open_redis_store(url, calendar=calendar, **more)


@pytest.fixture
async def opened(opening: Open) -> AsyncIterator[Store]:
    async with opening() as store:
        yield store


def subject_of(key_id: str = "key_a", team: str | None = "art", **limits: int) -> Principal:
    return make_principal(key_id, limits, team=team)


def record_of(subject: Principal, charge: Amounts, *, at: float, **more: Any) -> Record:
    record = draft(subject, request_id="req_1", time=at)
    return record.but(model="gpt-image-1", cost_micros=charge.usd_micros, **more)


async def reserve(
    store: Store, purchase: str, subject: Principal, estimate: Amounts = ESTIMATE
) -> Reservation:
    batch = Batch(store)
    reserved = quota.reserve(
        batch, subject, purchase, worker="w", estimate=estimate, payload=b"payload"
    )
    await batch.execute()
    return reserved.value


async def settle(
    store: Store,
    purchase: str,
    charge: Amounts,
    record: Record | None,
    **more: Any,
) -> Settlement:
    batch = Batch(store)
    settled = quota.settle(batch, purchase, charge, record=record, **more)
    await batch.execute()
    return settled.value


async def peek(store: Store, subject: str, kind: str = "used") -> dict[str, set[int]]:
    """Of each unit, its amounts in the windows of all periods."""
    found = {}
    for unit in UNITS:
        counters = tuple(Counter(subject, unit, period) for period in CALENDAR_PERIODS)
        states = await execute(store, PeekCounters(counters))
        found[unit] = {getattr(state, kind) for state in states}
    return found


async def total(store: Store, name: str) -> RunningTotal:
    return (await execute(store, ReadRunningTotals((name,))))[0]


async def ledger(store: Store) -> list[Record]:
    return [Record.decode(data) for _, data in await execute(store, ReadLedger())]


def same(images: int, tokens: int, usd_micros: int) -> dict[str, set[int]]:
    return {"images": {images}, "tokens": {tokens}, "usd_micros": {usd_micros}}


# ── scopes ──────────────────────────────────────────────────────────────────────────────────


async def test_a_purchase_counts_in_every_window_of_key_team_and_everyone(opened: Store) -> None:
    subject = subject_of()
    reservation = await reserve(opened, "p", subject)
    for scope in ("key:key_a", "team:art", "everyone"):
        assert await peek(opened, scope, "reserved") == same(2, 900, 5000)
        assert await peek(opened, scope) == same(0, 0, 0)

    await settle(opened, "p", COST, record_of(subject, COST, at=reservation.now))

    for scope in ("key:key_a", "team:art", "everyone"):
        assert await peek(opened, scope, "reserved") == same(0, 0, 0)
        assert await peek(opened, scope) == same(2, 700, 4321)
    assert await peek(opened, "team:other") == same(0, 0, 0)


async def test_a_limited_counter_is_reserved_in_and_charged_once(opened: Store) -> None:
    names = ("images_per_day", "tokens_per_day", "usd_per_day", "usd_per_week", "usd_per_month")
    subject = subject_of(**dict.fromkeys(names, 10_000))
    reservation = await reserve(opened, "p", subject)
    assert {(s.used, s.reserved) for s in reservation.states} == {
        *((0, amount) for amount in (2, 900, 5000)),
        (0, 1),  # the open purchase
    }
    await settle(opened, "p", COST, record_of(subject, COST, at=reservation.now))
    assert await peek(opened, "key:key_a") == same(2, 700, 4321)
    assert await peek(opened, "key:key_a", "reserved") == same(0, 0, 0)


async def test_a_budget_of_a_week_denies(opened: Store) -> None:
    subject = subject_of(usd_per_week=9999)
    assert (await reserve(opened, "one", subject)).denied is None
    assert (await reserve(opened, "two", subject)).denied == 1  # after the open purchases
    assert await peek(opened, "everyone", "reserved") == same(2, 900, 5000)


async def test_a_key_without_a_team_counts_for_itself_and_everyone(opened: Store) -> None:
    await reserve(opened, "p", subject_of(team=None))
    await reserve(opened, "q", subject_of("key_b", team=""))
    assert await peek(opened, "everyone", "reserved") == same(4, 1800, 10_000)
    assert await peek(opened, "team:", "reserved") == same(0, 0, 0)
    assert await peek(opened, "team:None", "reserved") == same(0, 0, 0)


@pytest.mark.parametrize("team", ["Kunst & Söhne", "a:day:2026-11-28", "x/y", "everyone"])
async def test_a_team_may_have_any_name(opened: Store, team: str) -> None:
    subject = subject_of(team=team)
    await reserve(opened, "p", subject)
    await settle(opened, "p", COST, record_of(subject, COST, at=time.time()))
    assert await peek(opened, f"team:{team}") == same(2, 700, 4321)
    assert await peek(opened, "everyone") == same(2, 700, 4321)
    assert (await total(opened, f"team:{team}")).charged == 4321


# ── the calendar ────────────────────────────────────────────────────────────────────────────


async def test_a_purchase_at_the_edge_of_a_year_belongs_to_the_windows_of_its_reservation(
    opening: Open,
) -> None:
    moved = before_new_year(time.time(), 1)
    subject = subject_of(usd_per_month=10_000)

    async with opening(MovedCalendar(moved)) as store:
        reservation = await reserve(store, "p", subject)
        assert await peek(store, "everyone", "reserved") == same(2, 900, 5000)
        month = Counter("everyone", "usd_micros", "month")

        async def has_ended() -> bool:
            (state,) = await execute(store, PeekCounters((month,)))
            return state.reserved == 0

        await eventually(has_ended)
        again = await reserve(store, "p", subject)
        assert again.reserved_at == reservation.reserved_at == reservation.now < again.now
        (journal,) = await execute(store, OpenJournals())
        assert journal.reserved_at == reservation.now
        settlement = await settle(store, "p", COST, record_of(subject, COST, at=reservation.now))
        assert {(state.used, state.reserved) for state in settlement.states} == {(0, 0)}
        assert (await peek(store, "everyone"))["usd_micros"] == {0, 4321}  # a week goes on

    async with opening(MovedCalendar(moved - DAY)) as store:
        for scope in ("key:key_a", "team:art", "everyone"):
            assert await peek(store, scope) == same(2, 700, 4321)
            assert await peek(store, scope, "reserved") == same(0, 0, 0)


@pytest.mark.parametrize("zone", ["Pacific/Kiritimati", "Pacific/Niue", "Asia/Kolkata"])
async def test_the_windows_are_those_of_the_time_zone(opening: Open, zone: str) -> None:
    calendar = Calendar(ZoneInfo(zone))
    async with opening(calendar) as store:
        reservation = await reserve(store, "p", subject_of(usd_per_day=9999, usd_per_month=9999))
        day = calendar.day_at(reservation.now)
        ends = {window.ends_at for window in (day.windows["day"], day.windows["month"])}
        resets_in = {state.resets_in for state in reservation.states if state.resets_in}
        assert sorted(resets_in) == pytest.approx(
            sorted(end - reservation.now for end in ends), abs=0.01
        )


async def test_another_time_zone_resets_no_counter(opening: Open) -> None:
    """Its edges move. At some hours the date is another one there, and the month goes on."""
    async with opening(Calendar(ZoneInfo("Pacific/Kiritimati"))) as store:
        reservation = await reserve(store, "p", subject_of())
    here = UTC_CALENDAR.day_at(reservation.now)
    there = Calendar(ZoneInfo("Pacific/Kiritimati")).day_at(reservation.now)
    async with opening() as store:
        for period in CALENDAR_PERIODS:
            is_same = here.windows[period].label == there.windows[period].label
            counter = Counter("everyone", "images", period)
            (state,) = await execute(store, PeekCounters((counter,)))
            assert state.reserved == (2 if is_same else 0)
        await settle(store, "p", NOTHING, None)
        assert await peek(store, "everyone", "reserved") == same(0, 0, 0)


@pytest.mark.parametrize("wrong_by", [-400 * DAY, -20 * 3600, -60, 60, 20 * 3600, 40 * DAY])
async def test_a_gateway_with_a_wrong_clock_counts_in_the_windows_of_the_store(
    redis_url: str, wrong_by: float
) -> None:
    subject = subject_of(usd_per_day=10_000)
    async with (
        open_redis_store(redis_url, clock=lambda: time.time() + wrong_by) as wrong,
        open_redis_store(redis_url) as right,
    ):
        reservation = await reserve(wrong, "p", subject)
        assert reservation.now == pytest.approx(time.time(), abs=30)
        assert await peek(right, "everyone", "reserved") == same(2, 900, 5000)
        await settle(wrong, "p", COST, record_of(subject, COST, at=reservation.now))
        assert await peek(right, "key:key_a") == await peek(wrong, "key:key_a")
        assert await peek(right, "everyone") == same(2, 700, 4321)
        await execute(right, CompareAndSet((Write("keys", "key_a", b"record", None),)))
        batch = Batch(wrong)
        admission = quota.admit(batch, subject, peeks=True)
        await batch.execute()
        assert [state.used for state in admission.value.states] == [4321]
        assert admission.value.now == pytest.approx(time.time(), abs=30)


async def test_a_wrong_clock_costs_one_more_round_trip_and_only_once(redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as client:
        client.config_resetstat()
        async with open_redis_store(redis_url, clock=lambda: time.time() + 40 * DAY) as store:
            for number in range(5):
                await reserve(store, f"p{number}", subject_of())
        assert int(client.info("errorstats")["errorstat_CALENDAR"]["count"]) == 1


async def test_of_a_batch_only_the_commands_with_a_wrong_calendar_are_sent_again(
    redis_url: str,
) -> None:
    async with open_redis_store(redis_url, clock=lambda: 0.0) as store:
        results = await store.execute(
            [
                CompareAndSet((Write("s", "n", b"v", None),)),
                Reserve("p", "w", (), b"", ("everyone",), {"images": 3}),
                Append((b"once",)),
                Settle("p", {"images": 1}, None),
            ]
        )
        assert (results[0], results[3].status) == (None, "settled")
        assert await peek(store, "everyone") == same(1, 0, 0)
        assert len(await execute(store, ReadLedger())) == 1


async def test_a_server_whose_clock_jumps_back_and_forth_is_unavailable(redis_url: str) -> None:
    class Lost(Calendar):
        def day_at(self, now: float) -> Any:
            return super().day_at(0.0)

    async with open_redis_store(redis_url, calendar=Lost()) as store:
        with pytest.raises(StoreUnavailable):
            await reserve(store, "p", subject_of())
        assert await execute(store, OpenJournals()) == []


# ── a store that lost writes ────────────────────────────────────────────────────────────────


async def test_a_settlement_without_a_reservation_is_recorded_and_charged_once(
    opened: Store,
) -> None:
    subject = subject_of()
    record = record_of(subject, COST, at=time.time(), flags=("no_usage",))
    first = await settle(opened, "p", COST, record, attempt="a")
    repeated = [await settle(opened, "p", COST, record, attempt="a") for _ in range(2)]

    assert (first.status, first.is_unreserved, first.attempt) == ("settled", True, "a")
    assert quota.charged(first) == COST
    assert {(again.status, again.is_unreserved) for again in repeated} == {("already", True)}
    (kept,) = await ledger(opened)
    assert kept == record.but(flags=("no_usage", "unreserved"))
    for scope in ("key:key_a", "team:art", "everyone"):
        assert await peek(opened, scope) == same(2, 700, 4321)
        assert await peek(opened, scope, "reserved") == same(0, 0, 0)
        assert await total(opened, scope) == RunningTotal(charged=4321)


async def test_a_reservation_that_runs_after_such_a_settlement_reserves_nothing(
    opened: Store,
) -> None:
    subject = subject_of()
    await settle(opened, "p", COST, record_of(subject, COST, at=time.time()))
    late = await reserve(opened, "p", subject)
    assert late.denied is None
    assert await peek(opened, "everyone", "reserved") == same(0, 0, 0)
    assert await execute(opened, OpenJournals()) == []


async def test_such_a_settlement_charges_the_windows_of_its_reservation(opening: Open) -> None:
    moved = before_new_year(time.time(), -60)
    subject = subject_of()
    async with opening(MovedCalendar(moved)) as store:
        record = record_of(subject, COST, at=time.time() - 3600)
        await settle(store, "p", COST, record)
        assert (await peek(store, "everyone"))["images"] == {0, 2}  # the week goes on
    async with opening(MovedCalendar(moved - DAY)) as store:
        assert await peek(store, "everyone") == same(2, 700, 4321)


async def test_such_a_presumed_charge_can_be_corrected(opened: Store) -> None:
    subject = subject_of()
    record = record_of(subject, ESTIMATE, at=time.time())
    await settle(opened, "p", ESTIMATE, record, presumed=True)
    corrected = await settle(opened, "p", COST, record, correct=True, attempt="b")
    assert (corrected.status, corrected.attempt) == ("corrected", "b")
    assert quota.as_amounts(corrected.corrected_from or {}) == ESTIMATE
    assert await peek(opened, "team:art") == same(2, 700, 4321)
    assert await total(opened, "team:art") == RunningTotal(charged=5000, corrected=679)


async def test_a_cancelled_purchase_without_a_reservation_stays_without_a_charge(
    opened: Store,
) -> None:
    cancelled = await settle(opened, "p", NOTHING, None)
    assert (cancelled.status, cancelled.is_unreserved) == ("unknown", False)
    record = record_of(subject_of(), COST, at=time.time())
    assert (await settle(opened, "p", COST, record)).status == "already"
    await reserve(opened, "p", subject_of())
    assert await ledger(opened) == []
    assert await peek(opened, "everyone") == await peek(opened, "everyone", "reserved")
    assert await peek(opened, "everyone") == same(0, 0, 0)


@pytest.mark.parametrize("kind", ["sqlite", "redis"])
async def test_a_window_that_was_lost_is_made_again_and_never_below_zero(
    request: pytest.FixtureRequest, kind: str
) -> None:
    """As an eviction does. What is settled later counts; more is not released than is there."""
    subject = subject_of()
    if kind == "redis":
        url: str = request.getfixturevalue("redis_url")
        async with open_redis_store(url) as store:
            await reserve(store, "p", subject)
            with redis.Redis.from_url(url) as client:
                client.delete(*client.keys("*:window:*"))
            await _check_made_again(store, subject)
            with redis.Redis.from_url(url) as client:
                assert all(client.ttl(key) > 0 for key in client.keys("*:window:*:20*"))
        return
    path: Path = request.getfixturevalue("sqlite_path")
    async with open_sqlite_store(path) as store:
        await reserve(store, "p", subject)
        db = connect(path, read_only=False)
        db.execute("DELETE FROM windows")
        db.close()
        await _check_made_again(store, subject)


async def _check_made_again(store: Store, subject: Principal) -> None:
    await settle(store, "p", COST, record_of(subject, COST, at=time.time()))
    for scope in ("key:key_a", "team:art", "everyone"):
        assert await peek(store, scope) == same(2, 700, 4321)
        assert await peek(store, scope, "reserved") == same(0, 0, 0)
    one_more = (Consumption(Counter("key:key_a", "purchases", "concurrency", 1), 1),)
    assert (await execute(store, Reserve("q", "w", one_more, b""))).denied is None
    assert (await execute(store, Reserve("r", "w", one_more, b""))).denied == 0


# ── running totals ──────────────────────────────────────────────────────────────────────────


async def test_running_totals_are_there_from_the_start(opened: Store) -> None:
    names = ("key:key_a", "everyone", "model:gpt-image-1")
    assert await execute(opened, ReadRunningTotals(names)) == [RunningTotal()] * 3
    assert await execute(opened, ReadRunningTotals(())) == []


async def test_saved_money_is_added_once_with_its_records(opened: Store) -> None:
    append = Append((b"hit",), saved={"everyone": 70, "key:key_a": 30})
    await execute(opened, append)
    await execute(opened, append)
    await execute(opened, Append((b"another",), saved={"everyone": 5}))
    assert await total(opened, "everyone") == RunningTotal(saved=75)
    assert await total(opened, "key:key_a") == RunningTotal(saved=30)


async def test_a_partial_purchase_saves_money_too_and_only_once(opened: Store) -> None:
    subject = subject_of()
    record = record_of(subject, ESTIMATE, at=time.time(), saved_micros=250)
    await reserve(opened, "p", subject)
    await settle(opened, "p", ESTIMATE, record, presumed=True)
    await settle(opened, "p", ESTIMATE, record, presumed=True)
    await settle(opened, "p", COST, record.but(saved_micros=0), correct=True)
    assert await total(opened, "model:gpt-image-1") == RunningTotal(5000, 679, 250)


async def first_charge(store: Store, name: str) -> float | None:
    return (await execute(store, ReadFirstCharges((name,))))[0]


async def test_the_first_charge_of_a_running_total_is_noted_once(opened: Store) -> None:
    subject, names = subject_of(), ("key:key_a", "team:art", "everyone", "model:gpt-image-1")
    assert await execute(opened, ReadFirstCharges(())) == []
    await execute(opened, Append((b"hit",), saved=dict.fromkeys(names, 70)))
    await settle(opened, "free", NOTHING, record_of(subject, NOTHING, at=time.time()))
    assert await execute(opened, ReadFirstCharges(names)) == [None] * 4

    before = time.time()
    await reserve(opened, "p", subject)
    await settle(opened, "p", ESTIMATE, record_of(subject, ESTIMATE, at=before), presumed=True)
    (at,) = set(await execute(opened, ReadFirstCharges(names)))
    assert at is not None
    assert before - 1 < at < time.time() + 1

    # Neither a correction nor another purchase changes it, of the same amount or a larger one.
    await settle(opened, "p", COST, record_of(subject, COST, at=before), correct=True)
    for purchase in ("q", "r"):
        await reserve(opened, purchase, subject)
        await settle(opened, purchase, ESTIMATE, record_of(subject, ESTIMATE, at=before))
    assert set(await execute(opened, ReadFirstCharges(names))) == {at}


@pytest.mark.parametrize("opening", ["sqlite", "redis"], indirect=True)
async def test_a_total_that_an_older_gateway_charged_first_never_has_a_first_charge(
    opened: Store, request: pytest.FixtureRequest
) -> None:
    subject = subject_of()
    record = record_of(subject, COST, at=time.time())
    await reserve(opened, "p", subject)
    await settle(opened, "p", COST, record)
    if request.node.callspec.params["opening"] == "redis":
        with redis.Redis.from_url(request.getfixturevalue("redis_url")) as client:
            (key,) = client.keys("*running-totals")
            client.hdel(key, "everyone:first_charge")
    else:
        db = connect(request.getfixturevalue("sqlite_path"), read_only=False)
        db.execute("DELETE FROM records WHERE name = 'everyone'")
        db.close()
    await reserve(opened, "q", subject)
    await settle(opened, "q", COST, record)
    assert await first_charge(opened, "everyone") is None
    assert await first_charge(opened, "team:art") is not None
    assert await total(opened, "everyone") == RunningTotal(charged=2 * COST.usd_micros)


few_examples = settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
PURCHASES = st.sampled_from("abc")
CHARGES = st.builds(Amounts, st.integers(0, 3), st.integers(0, 50), st.integers(0, 900))
STEPS = st.one_of(
    st.tuples(st.just("reserve"), PURCHASES, CHARGES),
    st.tuples(st.just("settle"), PURCHASES, CHARGES),
    st.tuples(st.just("presume"), PURCHASES, CHARGES),
    st.tuples(st.just("correct"), PURCHASES, CHARGES),
    st.tuples(st.just("cancel"), PURCHASES, CHARGES),
)


@few_examples
@given(steps=st.lists(st.tuples(STEPS, st.booleans()), max_size=14))
async def test_ledger_windows_and_running_totals_agree_after_any_sequence(
    opened: Store, steps: list[tuple[tuple[str, str, Amounts], bool]]
) -> None:
    """Every step may have lost its reply, and is then repeated."""
    name = uuid.uuid4().hex
    subject = subject_of(name, team=name, usd_per_month=10**9)
    before = await total(opened, "everyone")
    for step, is_repeated in steps:
        for _ in range(1 + is_repeated):
            await _perform(opened, subject, *step)

    records = [record for record in await ledger(opened) if record.key_id == name]
    spent = sum(record.cost_micros for record in records)
    for scope in limit_subjects(name, name)[:2]:
        running = await total(opened, scope)
        assert running.charged - running.corrected == spent
        assert (await peek(opened, scope))["usd_micros"] == {spent}
    everyone = await total(opened, "everyone")
    assert (everyone.charged - everyone.corrected) - (before.charged - before.corrected) == spent
    if not any(name in journal.purchase for journal in await execute(opened, OpenJournals())):
        assert await peek(opened, f"key:{name}", "reserved") == same(0, 0, 0)


async def _perform(
    store: Store, subject: Principal, step: str, letter: str, charge: Amounts
) -> None:
    purchase = f"{subject.key_id}-{letter}"
    record = record_of(subject, charge, at=time.time())
    if step == "reserve":
        await reserve(store, purchase, subject, charge)
    elif step == "cancel":
        await settle(store, purchase, NOTHING, None)
    elif step == "presume":
        await settle(store, purchase, charge, record, presumed=True)
    else:
        settlement = await settle(store, purchase, charge, record)
        if step == "correct" and settlement.status == "already" and settlement.presumed:
            difference = charge - quota.charged(settlement)
            late = record.but(cost_micros=difference.usd_micros)
            await settle(store, purchase, charge, late, correct=True)


def test_the_running_totals_of_a_record_are_those_of_its_scopes() -> None:
    record = record_of(subject_of(), COST, at=0.0)
    assert running_totals(record) == ("key:key_a", "team:art", "everyone", "model:gpt-image-1")
    assert running_totals(record.but(team=None, model=None)) == ("key:key_a", "everyone")
