"""Any sequence of requests, purchases, crashes and changes of limits agrees with a plain oracle.

On each store, over keys, their teams and everyone. See `oracle`.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from gateway.billing import limit_refusals, quota
from gateway.billing.counted_limits import LimitState
from gateway.billing.ledger import draft
from gateway.calendar import Calendar
from gateway.images import Amounts, LimitRule, Principal, Record
from gateway.limits import CALENDAR_PERIODS, LIMITS
from gateway.store.batch import Batch, execute
from gateway.store.commands import (
    Admit,
    Consumption,
    Counter,
    OpenJournals,
    ReadLedger,
    ReadRunningTotals,
)
from gateway.store.protocol import Store
from gateway.store.redis.store import open_redis_store
from gateway.store.sqlite.connection import create_sqlite_schema
from gateway.store.sqlite.store import open_sqlite_store
from tests.billing.oracle import UNITS, Amount, Oracle
from tests.moved_calendar import MovedCalendar
from tests.principals import make_principal
from tests.redis_cluster import RedisCluster
from tests.redis_server import emptied, restricted
from tests.sentinel_servers import SentinelServers
from tests.stores import TOPOLOGIES

Open = Callable[[Calendar], AbstractAsyncContextManager[Store]]

TEAMS = {"alice": "art", "bob": "art", "carol": "ads", "dave": None}
SUBJECTS = (*(f"key:{key}" for key in TEAMS), "team:art", "team:ads", "everyone")
WORKERS = ("one", "two")
DAY = 86_400

# Small, so that the limits are reached in all ways; some estimates are exceeded by the charge.
amounts = st.tuples(st.integers(0, 3), st.integers(0, 9), st.integers(0, 30))
estimates = st.tuples(st.integers(1, 3), st.integers(3, 9), st.integers(10, 30))
maxima = {
    "requests": st.integers(0, 5),
    "images": st.integers(0, 8),
    "purchases": st.integers(0, 4),
    "tokens": st.integers(0, 40),
    "usd_micros": st.integers(0, 120),
}
keys = st.sampled_from(["alice", *TEAMS])
numbers = st.integers(0, 99)


@st.composite
def limits(draw: Any) -> tuple[tuple[str, str], LimitRule]:
    """One limit of one subject."""
    name = draw(st.sampled_from(["requests_per_minute", "images_per_minute", *LIMITS]))
    subject = draw(st.sampled_from(["key:alice", "team:art", "everyone", *SUBJECTS]))
    mode = draw(st.sampled_from(["enforce", "shadow"]))
    return (subject, name), LimitRule(draw(maxima[LIMITS[name].unit]), mode)


class LimitsMachine(RuleBasedStateMachine):
    """Two workers that buy, and die, on a store that is compared after every step."""

    def __init__(self, new_store: Callable[[], Open]) -> None:
        super().__init__()
        self.oracle = Oracle()
        self.records: list[Record] = []
        self.runner = asyncio.Runner()
        self.open = new_store()
        self.stack = AsyncExitStack()
        self.days = 0
        self.bought = 0
        self.workers: dict[str, str] = {}

    @initialize(rules=st.lists(limits(), min_size=1, max_size=12))
    def start(self, rules: Sequence[tuple[tuple[str, str], LimitRule]]) -> None:
        self.oracle.rules.update(rules)
        self._restart()

    def teardown(self) -> None:
        if not hasattr(self, "store"):
            self.runner.close()
            return
        try:
            for worker in WORKERS:
                self.crash(worker)
            self._check_at_the_end()
        finally:
            self.runner.run(self.stack.aclose())
            self.runner.close()

    def _restart(self) -> None:
        """Opens the store, in a calendar that is some days ahead."""
        self.runner.run(self.stack.aclose())
        self.calendar = MovedCalendar(self.days * DAY)
        self.store = self.runner.run(self.stack.enter_async_context(self.open(self.calendar)))

    # ── limits ──────────────────────────────────────────────────────────────────────────────

    @rule(limit=limits())
    def limit(self, limit: tuple[tuple[str, str], LimitRule]) -> None:
        """A limit is set or changed."""
        self.oracle.rules.update([limit])

    @precondition(lambda self: self.oracle.rules)
    @rule(number=numbers)
    def lift(self, number: int) -> None:
        """A limit is lifted, with its raises."""
        subject, name = self._any(self.oracle.rules, number)
        del self.oracle.rules[subject, name]
        self.oracle.raises = [one for one in self.oracle.raises if one[:2] != (subject, name)]

    @precondition(lambda self: self.oracle.rules)
    @rule(number=numbers, more=st.integers(1, 60))
    def raise_for_some_time(self, number: int, more: int) -> None:
        self.oracle.raises.append((*self._any(self.oracle.rules, number), more))

    @precondition(lambda self: self.oracle.raises)
    @rule(number=numbers)
    def expire(self, number: int) -> None:
        """A raise ends."""
        self.oracle.raises.remove(self._any(self.oracle.raises, number))

    # ── requests and purchases ──────────────────────────────────────────────────────────────

    @rule(key=keys, times=st.integers(1, 4))
    def admit(self, key: str, times: int) -> None:
        for _ in range(times):
            self._admit(key)

    def _admit(self, key: str) -> None:
        principal = self._principal(key)
        batch = Batch(self.store)
        admitting = quota.admit(batch, principal)
        self._run(batch.execute())
        admission = admitting.value
        verdict = self.oracle.admit(_subjects(key), round(admission.now * 1e6))

        denied = None
        if admission.denied is not None:
            error = limit_refusals.refuse_admission(principal, admission)
            denied = _subject_in(error.message), error.reason
        assert denied == _shown(verdict.denied)
        shadowed = quota.shadowed_by_admission(principal, admission)
        assert _names(shadowed) == verdict.shadowed

    @rule(
        crowd=st.lists(st.tuples(keys, estimates), min_size=1, max_size=5),
        worker=st.sampled_from(WORKERS),
    )
    def reserve(self, crowd: Sequence[tuple[str, Amount]], worker: str) -> None:
        for key, estimate in crowd:
            self.bought += 1
            self._reserve(f"purchase-{self.bought}", key, estimate, worker)

    def _reserve(self, purchase: str, key: str, estimate: Amount, worker: str) -> None:
        principal, batch = self._principal(key), Batch(self.store)
        reserving = quota.reserve(
            batch, principal, purchase, worker=worker, estimate=Amounts(*estimate), payload=b""
        )
        self._run(batch.execute())
        reservation = reserving.value
        verdict = self.oracle.reserve(
            purchase,
            _subjects(key),
            estimate,
            self._labels(reservation.now),
            now=round(reservation.now * 1e6),
        )

        if reservation.denied is None:
            assert verdict.denied is None
            shadowed = quota.shadowed_by_reservation(principal, reservation)
            assert _names(shadowed) == verdict.shadowed
            self.workers[purchase] = worker
        else:
            error = limit_refusals.refuse_reservation(
                principal, reservation, Amounts(*estimate), why=None
            )
            assert error.refusal is not None
            assert (error.refusal.subject, error.refusal.limit) == verdict.denied
            assert (_subject_in(error.message), error.reason) == _shown(verdict.denied)

    @precondition(lambda self: self._open())
    @rule(number=numbers)
    def reserve_again(self, number: int) -> None:
        """The reply to a reservation was lost."""
        purchase = self._any(self._open(), number)
        bought = self.oracle.purchases[purchase]
        key = bought.subjects[0].removeprefix("key:")
        self._reserve(purchase, key, bought.estimate, self.workers[purchase])

    @precondition(lambda self: self._open("reserved"))
    @rule(number=numbers, cost=amounts)
    def receive(self, number: int, cost: Amount) -> None:
        purchase = self._any(self._open("reserved"), number)
        batch = Batch(self.store)
        state = quota.receive(batch, purchase, b"received")
        self._run(batch.execute())
        assert state.value == "received"
        self.oracle.receive(purchase, cost)

    @precondition(lambda self: self._open("received"))
    @rule(number=numbers, times=st.integers(1, 2))
    def settle(self, number: int, times: int) -> None:
        """Once, or twice because the reply was lost."""
        purchase = self._any(self._open("received"), number)
        for _ in range(times):
            self._settle(purchase, self.oracle.purchases[purchase].will_cost)

    @precondition(lambda self: self._open("reserved"))
    @rule(number=numbers)
    def fail_for_free(self, number: int) -> None:
        self._settle(self._any(self._open("reserved"), number), (0, 0, 0))

    @precondition(lambda self: self._open("reserved"))
    @rule(number=numbers)
    def fail_after_it_was_sent(self, number: int) -> None:
        purchase = self._any(self._open("reserved"), number)
        self._settle(purchase, self.oracle.purchases[purchase].estimate, presumed=True)

    @precondition(lambda self: self._settled())
    @rule(number=numbers, cost=amounts)
    def correct(self, number: int, cost: Amount) -> None:
        """A late answer to any settled purchase: it corrects presumed charges only."""
        self._settle(self._any(self._settled(), number), cost, correct=True)

    # ── time and crashes ────────────────────────────────────────────────────────────────────

    @rule(worker=st.sampled_from(WORKERS))
    def crash(self, worker: str) -> None:
        """Another worker closes the purchases of a dead one."""
        journals = self._run(execute(self.store, OpenJournals(worker)))
        expected = {p for p in self._open() if self.workers[p] == worker}
        assert {journal.purchase for journal in journals} == expected
        for journal in journals:
            bought = self.oracle.purchases[journal.purchase]
            assert bought.state == journal.state
            if journal.state == "received":
                self._settle(journal.purchase, bought.will_cost)
            else:
                self._settle(journal.purchase, bought.estimate, presumed=True)

    @rule(days=st.sampled_from([0, 1, 7, 31]))
    def restart(self, days: int) -> None:
        """A gateway is started anew, maybe in another window."""
        self.days += days
        self._restart()

    # ── the store ───────────────────────────────────────────────────────────────────────────

    def _settle(
        self, purchase: str, charge: Amount, *, presumed: bool = False, correct: bool = False
    ) -> None:
        bought, batch = self.oracle.purchases[purchase], Batch(self.store)
        before = bought.charge
        moved = Amounts(*charge) - Amounts(*before) if correct else Amounts(*charge)
        record = self._record(purchase, moved)
        settling = quota.settle(
            batch,
            purchase,
            Amounts(*charge),
            record=record,
            presumed=presumed,
            correct=correct,
        )
        self._run(batch.execute())
        if correct:
            expected = "corrected" if bought.is_presumed else "already"
            self.oracle.correct(purchase, charge)
        else:
            expected = "settled" if bought.is_open else "already"
            self.oracle.settle(purchase, charge, presumed=presumed)
        settlement = settling.value
        assert settlement.status == expected
        assert settlement.presumed == bought.is_presumed
        charged = quota.charged(settlement)
        assert (charged.images, charged.tokens, charged.usd_micros) == bought.charge
        if expected != "already":
            self.records.append(record)

    def _record(self, purchase: str, moved: Amounts) -> Record:
        key = self.oracle.purchases[purchase].subjects[0].removeprefix("key:")
        record = draft(self._principal(key), request_id=purchase, time=1.0)
        tokens = {"estimated": moved.tokens}
        return record.but(images=moved.images, tokens=tokens, cost_micros=moved.usd_micros)

    @invariant()
    def windows_are_the_sums_of_the_purchases(self) -> None:
        if not hasattr(self, "store"):
            return
        counters = [
            *(Counter(s, u, p) for s in SUBJECTS for u in UNITS for p in CALENDAR_PERIODS),
            *(Counter(subject, "purchases", "concurrency") for subject in SUBJECTS),
            *(Counter(subject, unit, "minute", 10) for subject, unit in self.oracle.buckets),
        ]
        # An admission of nothing tells the time too.
        peek = Admit((), tuple(Consumption(counter) for counter in counters))
        peeked = self._run(execute(self.store, peek))
        spent, reserved = self.oracle.windows()
        labels = dict(zip(CALENDAR_PERIODS, self._labels(peeked.now), strict=True))
        for (subject, unit, period, _), state in zip(counters, peeked.states, strict=True):
            if period == "minute":
                used = self.oracle.missing(subject, unit, 10, now=round(peeked.now * 1e6))
                expected = used, 0
            elif period == "concurrency":
                expected = 0, self.oracle.open_purchases(subject)
            else:
                window = subject, unit, labels[period]
                expected = spent.get(window, 0), reserved.get(window, 0)
            assert (state.used, state.reserved) == expected, (subject, unit, period)

    def _check_at_the_end(self) -> None:
        """Nothing is open, and records, running totals and charges are the same money."""
        assert not self._run(execute(self.store, OpenJournals()))
        self.windows_are_the_sums_of_the_purchases()
        _, reserved = self.oracle.windows()
        assert not any(reserved.values())
        stored = [
            Record.decode(data)
            for _, data in self._run(execute(self.store, ReadLedger("", limit=10_000)))
        ]
        assert sorted(r.encode() for r in stored) == sorted(r.encode() for r in self.records)
        totals = self._run(execute(self.store, ReadRunningTotals(SUBJECTS)))
        for subject, total in zip(SUBJECTS, totals, strict=True):
            of_subject = [b for b in self.oracle.purchases.values() if subject in b.subjects]
            assert total.charged - total.corrected == sum(b.charge[2] for b in of_subject)
        assert sum(r.cost_micros for r in stored) == sum(
            b.charge[2] for b in self.oracle.purchases.values()
        )

    def _principal(self, key: str) -> Principal:
        team = TEAMS[key]
        return make_principal(
            key,
            self.oracle.rules_of(f"key:{key}"),
            team=team,
            team_limits=self.oracle.rules_of(f"team:{team}"),
            everyone_limits=self.oracle.rules_of("everyone"),
        )

    def _labels(self, now: float) -> tuple[str, ...]:
        """The day, week and month in which the store counts, at its time."""
        windows = self.calendar.day_at(now).windows
        return tuple(windows[period].label for period in CALENDAR_PERIODS)

    def _open(self, state: str | None = None) -> list[str]:
        purchases = self.oracle.purchases.items()
        return [p for p, b in purchases if b.is_open and state in (None, b.state)]

    def _settled(self) -> list[str]:
        return [p for p, bought in self.oracle.purchases.items() if not bought.is_open]

    def _any(self, of: Any, number: int) -> Any:
        return list(of)[number % len(of)]

    def _run(self, coroutine: Any) -> Any:
        return self.runner.run(coroutine)


def _subjects(key: str) -> tuple[str, ...]:
    team = TEAMS[key]
    return (f"key:{key}", *((f"team:{team}",) if team else ()), "everyone")


def _names(states: list[LimitState]) -> list[tuple[str, str]]:
    return [(state.subject.name, state.limit.name) for state in states]


def _subject_in(message: str) -> str:
    """Whose limit a refusal names."""
    return message.partition(" of ")[2].partition(" reached: ")[0]


def _shown(denied: tuple[str, str] | None) -> tuple[str, str] | None:
    """As a refusal names it."""
    if denied is None:
        return None
    kind, _, name = denied[0].partition(":")
    return (f"{kind} '{name}'" if name else kind), denied[1]


@pytest.fixture(params=["sqlite", "redis", *TOPOLOGIES])
def new_store(request: pytest.FixtureRequest) -> Callable[[], Open]:
    """Makes an empty store, and returns how to open it."""
    if request.param != "sqlite":
        empty = _emptying(request)

        def new_redis() -> Open:
            url = empty()
            return lambda calendar: open_redis_store(url, calendar=calendar)

        return new_redis
    folder: Path = request.getfixturevalue("tmp_path")

    def new_sqlite() -> Open:
        path = folder / uuid.uuid4().hex / "store.sqlite3"
        create_sqlite_schema(path)
        return lambda calendar: open_sqlite_store(path, calendar=calendar)

    return new_sqlite


def _emptying(request: pytest.FixtureRequest) -> Callable[[], str]:
    """Deletes all data, and returns the URL."""
    if request.param == "redis":
        server: str = request.getfixturevalue("redis_server")
        return lambda: restricted(emptied(server))
    name = {"sentinel": "sentinel_servers", "cluster": "redis_cluster"}[request.param]
    servers: SentinelServers | RedisCluster = request.getfixturevalue(name)

    def empty() -> str:
        servers.flush()
        return servers.restricted()

    return empty


def run_model(new_store: Callable[[], Open], *, examples: int, steps: int) -> None:
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        lambda: LimitsMachine(new_store),
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_limits_agree_with_the_oracle_after_every_step(new_store: Callable[[], Open]) -> None:
    run_model(new_store, examples=20, steps=30)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_limits_agree_with_the_oracle_over_thousands_of_steps(
    new_store: Callable[[], Open],
) -> None:
    run_model(new_store, examples=150, steps=100)
