"""The arithmetic of counters: random sequences on each adapter, compared with one plain model.

The model gets the store's own `now`, so bucket levels agree to the microsecond.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.store import commands
from gateway.store.batch import execute
from gateway.store.commands import Consumption, Counter
from gateway.store.protocol import Store
from gateway.store.sqlite import arithmetic as counters

UNIT = 60_000_000
PERIODS = ("minute", "day", "concurrency")

few_examples = settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@dataclass
class Model:
    """The counters of one unit, and the journals."""

    level: int | None = None
    at: int = 0
    spent: int = 0
    reserved: dict[str, int] = field(default_factory=lambda: {"day": 0, "concurrency": 0})
    journals: dict[str, dict[str, Any]] = field(default_factory=dict)
    ledger: int = 0

    def level_at(self, maximum: int, now: int) -> int:
        capacity = maximum * UNIT
        if self.level is None:
            return capacity
        return min(capacity, self.level + (now - self.at) * maximum)

    def missing(self, maximum: int, now: int) -> int:
        return maximum * UNIT - self.level_at(maximum, now)

    def reserve(self, purchase: str, consumptions: tuple[Consumption, ...], now: int) -> int | None:
        if purchase in self.journals:
            return None
        for index, consumption in enumerate(consumptions):
            if not self.fits(consumption, now):
                return index
        for consumption in consumptions:
            self.consume(consumption, now)
        amounts = {consumption.counter.period: consumption.amount for consumption in consumptions}
        self.journals[purchase] = {"amounts": amounts, "open": True, "charge": 0, "presumed": False}
        return None

    def fits(self, consumption: Consumption, now: int) -> bool:
        maximum, period = consumption.counter.maximum, consumption.counter.period
        if maximum is None or consumption.amount == 0:
            return True
        if period == "minute":
            return consumption.amount * UNIT <= self.level_at(maximum, now)
        spent = self.spent if period == "day" else 0
        return spent + self.reserved[period] + consumption.amount <= maximum

    def consume(self, consumption: Consumption, now: int) -> None:
        if consumption.counter.period != "minute":
            self.reserved[consumption.counter.period] += consumption.amount
        elif consumption.counter.maximum is not None and consumption.amount:
            self.level = self.level_at(consumption.counter.maximum, now) - consumption.amount * UNIT
            self.at = now

    def settle(self, purchase: str, charge: int, presumed: bool, correct: bool) -> str:
        journal = self.journals.get(purchase)
        if journal is None:
            self.journals[purchase] = {"open": False, "charge": None, "presumed": False}
            return "unknown"
        if journal["open"]:
            for period in ("day", "concurrency"):
                self.reserved[period] -= journal["amounts"][period]
            status, journal["presumed"] = "settled", presumed
        elif correct and journal["presumed"]:
            status, journal["presumed"] = "corrected", False
        else:
            return "already"
        self.spent += charge - journal["charge"]
        journal |= {"open": False, "charge": charge}
        self.ledger += 1
        return status


amounts = st.integers(0, 6)
maxima = st.sampled_from([None, 0, 1, 5, 12])
names = st.sampled_from("abcd")
reserves = st.tuples(st.just("reserve"), names, st.tuples(amounts, amounts, amounts), maxima)
settles = st.tuples(st.just("settle"), names, amounts, st.booleans(), st.booleans())


@few_examples
@given(steps=st.lists(st.one_of(reserves, settles), max_size=14))
async def test_any_sequence_of_reservations_and_settlements_agrees_with_the_model(
    store: Store, steps: list[tuple[Any, ...]]
) -> None:
    model, subject = Model(), uuid.uuid4().hex
    for step in steps:
        perform = _reserve if step[0] == "reserve" else _settle
        await perform(store, model, subject, *step[1:])
        await _check_windows(store, model, subject)


async def _reserve(
    store: Store,
    model: Model,
    subject: str,
    name: str,
    wanted: tuple[int, ...],
    maximum: int | None,
) -> None:
    consumptions = tuple(
        Consumption(Counter(subject, "images", period, maximum), amount)
        for period, amount in zip(PERIODS, wanted, strict=True)
    )
    reservation = await execute(
        store, commands.Reserve(f"{subject}-{name}", "w", consumptions, b"")
    )
    now = round(reservation.now * 1e6)
    assert reservation.denied == model.reserve(name, consumptions, now)
    if maximum is not None:
        assert reservation.states[0].used == -(-model.missing(maximum, now) // UNIT)


async def _settle(
    store: Store, model: Model, subject: str, name: str, charge: int, presumed: bool, correct: bool
) -> None:
    command = commands.Settle(f"{subject}-{name}", {"images": charge}, b"r", presumed, correct)
    settlement = await execute(store, command)
    assert settlement.status == model.settle(name, charge, presumed, correct)
    if settlement.status != "unknown":
        journal = model.journals[name]
        charged = {} if journal["charge"] is None else {"images": journal["charge"]}
        assert dict(settlement.charged) == charged
        assert settlement.presumed == journal["presumed"]


async def _check_windows(store: Store, model: Model, subject: str) -> None:
    windows = tuple(Counter(subject, "images", period) for period in PERIODS[1:])
    day, concurrent = await execute(store, commands.PeekCounters(windows))
    assert (day.used, day.reserved) == (model.spent, model.reserved["day"])
    assert (concurrent.used, concurrent.reserved) == (0, model.reserved["concurrency"])


@few_examples
@given(
    consumptions=st.lists(
        st.tuples(st.integers(0, 5), st.sampled_from([3, 600, 60_000])), max_size=8
    )
)
async def test_a_bucket_agrees_with_the_model_to_the_microsecond(
    store: Store, consumptions: list[tuple[int, int]]
) -> None:
    model, subject = Model(), uuid.uuid4().hex
    for index, (amount, maximum) in enumerate(consumptions):
        consumption = Consumption(Counter(subject, "requests", "minute", maximum), amount)
        reservation = await execute(
            store, commands.Reserve(f"{subject}-{index}", "w", (consumption,), b"")
        )
        now = round(reservation.now * 1e6)
        fits = model.fits(consumption, now)
        assert (reservation.denied is None) == fits
        if fits:
            model.consume(consumption, now)
        missing = model.missing(maximum, now)
        assert reservation.states[0].used == -(-missing // UNIT)
        assert reservation.states[0].resets_in == pytest.approx(missing / maximum / 1e6, abs=2e-6)


class TestWindows:
    """Exact times, for which only the pure arithmetic can be tested."""

    @pytest.mark.parametrize(
        ("period", "now", "label", "ends_at"),
        [
            ("day", 1_767_225_599.5, "2025-12-31", 1_767_225_600.0),
            ("day", 1_767_225_600.0, "2026-01-01", 1_767_312_000.0),
            ("month", 1_767_225_599.5, "2025-12", 1_767_225_600.0),
            ("month", 1_767_225_600.0, "2026-01", 1_769_904_000.0),
            ("month", 1_709_164_800.0, "2024-02", 1_709_251_200.0),
        ],
    )
    def test_windows_begin_at_utc_midnight_and_on_the_first(
        self, period: Any, now: float, label: str, ends_at: float
    ) -> None:
        assert counters.window_at(period, now) == counters.Window(label, ends_at)


class TestBuckets:
    def test_a_clock_that_steps_back_refills_nothing(self) -> None:
        bucket = counters.Bucket(level=5, at=1000)
        assert counters.refill(bucket, 10, now=400) == bucket

    def test_a_bucket_of_any_maximum_is_full_after_a_minute(self) -> None:
        for maximum in (1, 7, 100):
            full = counters.refill(counters.Bucket(0, 0), maximum, now=UNIT)
            assert full.level == maximum * UNIT

    def test_used_is_in_whole_units_rounded_up(self) -> None:
        state: Callable[[int], commands.CounterState] = lambda level: counters.bucket_state(  # noqa: E731
            counters.Bucket(level, 0), 2
        )
        assert [state(2 * UNIT).used, state(2 * UNIT - 1).used, state(UNIT).used] == [0, 1, 1]
        assert state(UNIT).resets_in == 30.0
