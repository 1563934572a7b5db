"""Budgets of key, team and everyone at the edges of their windows: nothing is spent twice, and
nobody is locked out.

The stores go by the machine's clock, so the tests move the calendar instead.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from gateway.billing import limit_refusals, quota
from gateway.calendar import Calendar
from gateway.images import Amounts, Principal
from gateway.limits import LIMITS
from gateway.store.batch import Batch
from gateway.store.commands import Reservation
from gateway.store.protocol import Store
from gateway.store.redis.store import open_redis_store
from gateway.store.sqlite.store import open_sqlite_store
from tests.moved_calendar import MovedCalendar
from tests.principals import make_principal
from tests.stores import TOPOLOGIES

Open = Callable[[Calendar], AbstractAsyncContextManager[Store]]

ONE = Amounts(images=1, tokens=100, usd_micros=1_000_000)
BUDGET = {"usd_per_day": 1_500_000, "usd_per_week": 1_500_000, "usd_per_month": 1_500_000}
SCOPES = ("key", "team", "everyone")
HOUR = 3600.0


@dataclass(frozen=True)
class Edge:
    """The first instant of a window, as a clock on the wall shows it."""

    zone: str
    limit: str
    at: str

    @property
    def seconds(self) -> float:
        return datetime.fromisoformat(self.at).replace(tzinfo=ZoneInfo(self.zone)).timestamp()


EDGES = [
    Edge("UTC", "usd_per_day", "2026-11-29 00:00"),
    Edge("UTC", "usd_per_month", "2026-12-01 00:00"),
    Edge("Asia/Kolkata", "usd_per_day", "2026-11-29 00:00"),  # 18:30 in UTC
    Edge("Asia/Kolkata", "usd_per_month", "2026-12-01 00:00"),
    Edge("Europe/Berlin", "usd_per_day", "2026-03-29 00:00"),  # a day of 23 hours begins
    Edge("Europe/Berlin", "usd_per_day", "2026-03-30 00:00"),
    Edge("Europe/Berlin", "usd_per_day", "2026-10-25 00:00"),  # a day of 25 hours begins
    Edge("Europe/Berlin", "usd_per_day", "2026-10-26 00:00"),
    Edge("Europe/Berlin", "usd_per_week", "2026-03-30 00:00"),
    Edge("Europe/Berlin", "usd_per_month", "2027-01-01 00:00"),
]


@pytest.fixture(params=["sqlite", "redis", *TOPOLOGIES])
def opening(request: pytest.FixtureRequest) -> Open:
    """Opens the test's store with a calendar."""
    if request.param == "sqlite":
        path: Path = request.getfixturevalue("sqlite_path")
        return lambda calendar: open_sqlite_store(path, calendar=calendar)
    url: str = request.getfixturevalue(f"{request.param}_url")
    return lambda calendar: open_redis_store(url, calendar=calendar)


@dataclass(frozen=True)
class Clocked:
    """A store in a time zone, which a test opens at any time."""

    opening: Open
    zone: ZoneInfo

    @asynccontextmanager
    async def at(self, seconds: float) -> AsyncIterator[Store]:
        calendar = MovedCalendar(seconds - time.time(), self.zone)
        async with self.opening(calendar) as store:
            yield store

    async def buy(self, seconds: float, principal: Principal) -> str | None:
        """Buys at a time. Returns the name of the limit that refuses, if one does."""
        async with self.at(seconds) as store:
            return await buy(store, principal)


async def reserve(store: Store, principal: Principal, purchase: str) -> Reservation:
    batch = Batch(store)
    reservation = quota.reserve(batch, principal, purchase, worker="w", estimate=ONE, payload=b"")
    await batch.execute()
    return reservation.value


async def settle(store: Store, purchase: str) -> None:
    batch = Batch(store)
    quota.settle(batch, purchase, ONE, record=None)
    await batch.execute()


async def buy(store: Store, principal: Principal) -> str | None:
    purchase = uuid.uuid4().hex
    reservation = await reserve(store, principal, purchase)
    if reservation.denied is not None:
        return limit_refusals.refuse_reservation(principal, reservation, ONE, why=None).reason
    await settle(store, purchase)
    return None


def limited(scope: str, *limits: str, key: str = "alice") -> Principal:
    """A budget for one purchase."""
    budgets = {limit: BUDGET[limit] for limit in limits}
    by_scope = {name: budgets if name == scope else None for name in SCOPES}
    return make_principal(
        key,
        by_scope["key"],
        team="art",
        team_limits=by_scope["team"],
        everyone_limits=by_scope["everyone"],
    )


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("edge", EDGES, ids=lambda e: f"{e.zone}-{e.limit}-{e.at[:10]}")
async def test_a_budget_begins_anew_at_the_edge_and_only_there(
    opening: Open, edge: Edge, scope: str
) -> None:
    clocked, alice = Clocked(opening, ZoneInfo(edge.zone)), limited(scope, edge.limit)
    before, after = edge.seconds - 10, edge.seconds + 10
    assert await clocked.buy(before, alice) is None
    assert await clocked.buy(before, alice) == edge.limit
    assert await clocked.buy(after, alice) is None
    assert await clocked.buy(after, alice) == edge.limit
    # A clock that steps back finds the old window as it was, and the new one afterwards.
    assert await clocked.buy(before, alice) == edge.limit
    assert await clocked.buy(after, alice) == edge.limit


@pytest.mark.parametrize("edge", EDGES, ids=lambda e: f"{e.zone}-{e.limit}-{e.at[:10]}")
async def test_a_refusal_says_when_the_window_ends(opening: Open, edge: Edge) -> None:
    clocked, alice = Clocked(opening, ZoneInfo(edge.zone)), limited("team", edge.limit)
    async with clocked.at(edge.seconds - 90) as store:
        await buy(store, alice)
        refused = await reserve(store, alice, "p")
    assert refused.denied is not None
    assert refused.states[refused.denied].resets_in == pytest.approx(90, abs=10)


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize(
    ("zone", "first", "last"),
    [
        ("Europe/Berlin", "2026-03-29 00:00", "2026-03-29 23:59"),
        ("Europe/Berlin", "2026-10-25 00:00", "2026-10-25 23:59"),
        ("Asia/Kolkata", "2026-03-29 00:00", "2026-03-29 23:59"),
    ],
)
async def test_a_day_of_23_or_25_hours_is_one_day(
    opening: Open, zone: str, first: str, last: str, scope: str
) -> None:
    clocked, alice = Clocked(opening, ZoneInfo(zone)), limited(scope, "usd_per_day")
    begins, ends = (Edge(zone, "", at).seconds for at in (first, last))
    assert await clocked.buy(begins + 10, alice) is None
    hour = begins + HOUR
    while hour < ends:  # an hour that the clock shows twice comes twice
        assert await clocked.buy(hour, alice) == "usd_per_day"
        hour += 4 * HOUR
    assert await clocked.buy(ends, alice) == "usd_per_day"
    assert await clocked.buy(ends + 120, alice) is None


async def test_the_hour_that_a_clock_shows_twice_is_of_one_day(opening: Open) -> None:
    zone = ZoneInfo("Europe/Berlin")
    clocked, alice = Clocked(opening, zone), limited("team", "usd_per_day")
    half_past_two = datetime(2026, 10, 25, 2, 30, tzinfo=zone)
    again = half_past_two.replace(fold=1)
    assert again.timestamp() - half_past_two.timestamp() == HOUR
    assert await clocked.buy(half_past_two.timestamp(), alice) is None
    assert await clocked.buy(again.timestamp(), alice) == "usd_per_day"


@pytest.mark.parametrize("edge", EDGES[:2], ids=lambda e: e.limit)
async def test_a_purchase_over_the_edge_belongs_to_the_window_of_its_reservation(
    opening: Open, edge: Edge
) -> None:
    clocked = Clocked(opening, ZoneInfo(edge.zone))
    principals = [limited(scope, edge.limit, key="alice") for scope in SCOPES]
    unlimited = make_principal("alice", team="art")
    async with clocked.at(edge.seconds - 10) as store:
        assert (await reserve(store, unlimited, "open")).denied is None
    async with clocked.at(edge.seconds + 10) as store:
        await settle(store, "open")
        for principal in principals:
            assert (await _state(store, principal)) == (0, 0)
    async with clocked.at(edge.seconds - 10) as store:
        for principal in principals:
            assert (await _state(store, principal)) == (ONE.usd_micros, 0)


async def _state(store: Store, principal: Principal) -> tuple[int, int]:
    batch = Batch(store)
    states = quota.peek(batch, principal)
    await batch.execute()
    (state,) = quota.peeked_states(principal, states.value)
    return state.counter.used, state.counter.reserved


async def test_a_crowd_over_midnight_spends_each_day_once(opening: Open) -> None:
    """Keys of one team buy all the time, while the day ends."""
    keys = [limited("team", "usd_per_day", key=f"key-{i}") for i in range(4)]
    calendar = MovedCalendar(Edge("UTC", "", "2026-11-29 00:00").seconds - time.time() - 1)
    bought: list[str] = []

    async def shop(store: Store, key: Principal) -> None:
        while time.time() < ends:
            purchase = uuid.uuid4().hex
            reservation = await reserve(store, key, purchase)
            if reservation.denied is None:
                bought.append(calendar.day_at(reservation.now).windows["day"].label)
                await settle(store, purchase)

    async with opening(calendar) as store, opening(calendar) as other:
        ends = time.time() + 2
        await asyncio.gather(*(shop((store, other)[i % 2], key) for i, key in enumerate(keys)))
    assert bought == ["2026-11-28", "2026-11-29"]


def test_every_budget_has_an_edge_here() -> None:
    budgets = {limit.name for limit in LIMITS.values() if limit.unit == "usd_micros"}
    assert {edge.limit for edge in EDGES} == set(BUDGET) == budgets
