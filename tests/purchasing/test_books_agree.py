"""Ledger, windows, running totals, totals and metrics agree after any sequence of purchases.

A worker buys and a second one recovers, with the settlements and the recovery of a gateway, on each
store. Any command that writes to the books may be lost, before or after it is executed.
"""

from __future__ import annotations

import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import structlog.testing
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from gateway.billing import quota
from gateway.billing.ledger import Ledger, draft
from gateway.billing.running_totals import limit_subjects
from gateway.billing.totals import Totals, TotalsSettings
from gateway.billing.verification import Verification, VerificationSettings, Verified
from gateway.errors import Charge, StoreUnavailable, UpstreamFailure
from gateway.images import Amounts, Principal, Record
from gateway.limits import CALENDAR_PERIODS
from gateway.metrics import Metrics
from gateway.purchasing import settlement
from gateway.purchasing.charges import charge_reserved
from gateway.purchasing.journal import Received, Reserved
from gateway.purchasing.recovery import Recovery
from gateway.purchasing.settlement import Settlements, retry_until_stored
from gateway.store.batch import Batch, execute
from gateway.store.commands import (
    Append,
    AppendRefusals,
    FoldTotals,
    OpenJournals,
    PeekCounters,
    ReadLedger,
    ReadRunningTotals,
    Receive,
    Reserve,
    RunningTotal,
    Settle,
)
from gateway.store.commands import Counter as Window
from gateway.store.protocol import Command, Store
from gateway.store.sqlite.connection import connect
from tests.conftest import OpenStore
from tests.principals import make_principal
from tests.redis_masters import open_masters

UNITS = ("images", "tokens", "usd_micros")
BUCKETS: Any = ("quarter", "day_in_zone", "day_in_utc")
ZONE = "Asia/Kathmandu"
LETTERS = st.sampled_from("abc")
FATES = st.sampled_from(["", "", "", "refused", "half", "lost"])
"""What happens to the next batch that writes to the books."""
CHARGES = st.builds(Amounts, st.integers(0, 3), st.integers(0, 50), st.integers(0, 900))
STEPS = st.one_of(
    st.tuples(st.just("reserve"), LETTERS, CHARGES),
    st.tuples(st.just("reserve"), LETTERS, CHARGES),
    st.tuples(st.just("buy while the store is away"), LETTERS, CHARGES),
    st.tuples(st.just("receive"), LETTERS, CHARGES),
    st.tuples(st.sampled_from(["deliver", "deliver in vain", "fail with usage"]), LETTERS, CHARGES),
    st.tuples(
        st.sampled_from(["fail for free", "fail presumed", "damage", "lose", "cancel"]),
        LETTERS,
        st.none(),
    ),
    st.tuples(st.sampled_from(["recover", "fold", "hit", "refuse"]), LETTERS, st.none()),
)

LoseJournal = Callable[[str], None]


@pytest.fixture
async def store(open_store: OpenStore) -> AsyncIterator[Store]:
    async with open_store() as opened:
        yield opened


@pytest.fixture
def lose_journal(store: Store, request: pytest.FixtureRequest) -> LoseJournal:
    """Removes an open journal, as a store does that was restored from an older copy."""

    def lose(purchase: str) -> None:
        if not store.name.startswith("redis"):
            db = connect(request.getfixturevalue("sqlite_path"), read_only=False)
            db.execute("DELETE FROM journals WHERE purchase = ?", (purchase,))
            db.close()
            return
        topology = request.node.callspec.params["open_store"]
        with open_masters(request.getfixturevalue(f"{topology}_url")) as masters:
            for master in masters:
                for name in master.keys(f"*:journal:{purchase}"):  # none if it is lost already
                    master.delete(name)
                for name in master.keys("*:open:*"):
                    master.zrem(name, purchase)

    return lose


class FlakyStore:
    """A store that does not execute, or does not answer, the next batch of the books."""

    def __init__(self, store: Store) -> None:
        self.name, self.watch, self._store = store.name, store.watch, store
        self.fate = ""

    async def execute(self, commands: Sequence[Command[Any]]) -> list[Any]:
        books = (Settle, Reserve, Append, AppendRefusals, FoldTotals)
        if not self.fate or not any(isinstance(command, books) for command in commands):
            return await self._store.execute(commands)
        fate, self.fate = self.fate, ""
        if fate != "refused":
            count = len(commands) // 2 if fate == "half" else len(commands)
            await self._store.execute(commands[:count])
        raise StoreUnavailable


class NoImages:
    """The cache of purchases without a flight: they store no images."""

    is_broken = False

    async def store_bytes(self, batch: Batch, data: object) -> None:
        assert not data
        if self.is_broken:
            raise ZeroDivisionError


@dataclass
class Purchase:
    """A purchase, and what it has to be charged in the end."""

    reserved: Reserved
    record: Record
    received: Received | None = None
    is_readable: bool = True
    is_lost: bool = False
    charge: Amounts | None = None
    """None while it is open."""
    is_presumed: bool = False
    is_final: bool = False


@dataclass
class Play:
    """Two workers of one store."""

    store: Store
    lose_journal: LoseJournal
    name: str = field(default_factory=lambda: uuid.uuid4().hex)
    purchases: dict[str, Purchase] = field(default_factory=dict)
    hits: int = 0
    refusals: int = 0
    saved: int = 0

    def __post_init__(self) -> None:
        self.flaky = FlakyStore(self.store)
        self.metrics = [Metrics(CollectorRegistry()) for _ in range(2)]
        cache: Any = NoImages()
        self.cache = cache
        self.buyer, self.other = [
            Settlements(self.flaky, cache, metrics.money) for metrics in self.metrics
        ]
        self.recovery = Recovery(self.flaky, self.other, worker="me", expires_after_seconds=10**9)
        self.ledger = Ledger(self.flaky)
        self.totals = Totals(
            self.flaky,
            TotalsSettings(time_zone=ZONE),
            worker="me",
            observer=self.metrics[0].money,
        )

    def subject(self, letter: str) -> Principal:
        """Two keys of one team; one of them has a limit."""
        number = "abcd".index(letter) % 2
        limits = {"usd_per_month": 10**9, "concurrent_requests": 99} if number else {}
        key = f"{self.name}-{number}"
        return make_principal(key, limits, team=self.name)

    # ── steps ───────────────────────────────────────────────────────────────────────────────

    async def step(self, name: str, letter: str, amounts: Any) -> None:
        found = self.purchases.get(letter)
        if name in ("reserve", "buy while the store is away"):
            if found is None:
                await self.reserve(letter, amounts, is_limited=name == "reserve")
        elif name in ("fold", "hit", "refuse", "recover"):
            await getattr(self, name)(letter)
        elif found is not None and not found.is_final:
            await self.go_on(name, found, amounts)

    async def reserve(self, letter: str, estimate: Amounts, *, is_limited: bool) -> None:
        subject, purchase = self.subject(letter), f"{self.name}-{letter}"
        record = draft(subject, request_id=purchase, time=time.time())
        record = record.but(model="gpt-image-1", outcome="bought", saved_micros=7)
        reserved = Reserved(purchase, None, estimate, record)
        opened = self.purchases[letter] = Purchase(reserved, record)

        async def attempt() -> float:
            batch = Batch(self.flaky)
            reservation = quota.reserve(
                batch,
                subject if is_limited else subject.without_limits(),
                purchase,
                worker=self.name,
                estimate=estimate,
                payload=reserved.encode(),
            )
            await batch.execute()
            return reservation.value.reserved_at

        try:
            at = await (attempt() if is_limited else retry_until_stored(attempt))
        except StoreUnavailable:
            await self.go_on("cancel", opened, None)
            return
        opened.record = record.but(time=at)

    async def go_on(self, name: str, opened: Purchase, amounts: Any) -> None:
        purchase = opened.reserved.purchase
        if name == "receive" and opened.received is None:
            opened.received = self.bill(opened, amounts)
            opened.is_readable = True  # this payload replaces a damaged one
            payload = opened.received.encode()
            await execute(self.store, Receive(purchase, payload))
        elif name == "damage" and opened.charge is None:
            opened.is_readable = False
            await execute(self.store, Receive(purchase, b"unreadable"))
        elif name == "lose" and opened.charge is None:
            opened.is_lost = True
            self.lose_journal(purchase)
        elif name == "cancel" and opened.received is None and opened.charge is None:
            opened.charge, opened.is_final = None, True

            async def cancel() -> None:
                batch = Batch(self.flaky)
                quota.settle(batch, purchase, Amounts(), record=None)
                await batch.execute()

            await retry_until_stored(cancel)
        elif name.startswith("deliver") or opened.received is not None:
            received = opened.received or self.bill(opened, amounts or Amounts(1, 2, 3))
            # A fault of the gateway may keep the images from being stored.
            self.cache.is_broken = name == "deliver in vain"
            await self.buyer.commit(received, {})
            self.cache.is_broken = False
            opened.charge, opened.is_presumed, opened.is_final = received.charge, False, True
        elif name.startswith("fail"):
            await self.fail(name, opened, amounts)

    def bill(self, opened: Purchase, charge: Amounts) -> Received:
        record = opened.record.but(
            images=charge.images,
            tokens={"image_out": charge.tokens} if charge.tokens else {},
            cost_micros=charge.usd_micros,
            costs={"image_out": charge.usd_micros} if charge.usd_micros else {},
        )
        return Received(opened.reserved, {}, charge, record)

    async def fail(self, name: str, opened: Purchase, usage: Amounts | None) -> None:
        kind = {"free": Charge.FREE, "presumed": Charge.PRESUMED, "usage": Charge.UNDELIVERED}
        failure = UpstreamFailure("It failed.", charge=kind[name.rpartition(" ")[2]])
        is_presumed = failure.charge is Charge.PRESUMED
        charge = usage or (opened.reserved.estimate if is_presumed else Amounts())
        record = opened.record.but(
            outcome="failed",
            flags=("presumed",) if is_presumed else (),
            **charge_reserved(charge).recorded,
        )
        await self.buyer.settle_failure(opened.reserved, failure, charge, record=record)
        if opened.charge is None or not is_presumed:
            opened.charge, opened.is_presumed = charge, is_presumed
        opened.is_final = True

    async def recover(self, _letter: str) -> None:
        """The buyer is taken for dead; it may settle all the same afterwards."""
        while True:
            try:
                await self.recovery.recover_dead()
                await self.recovery.recover(self.name)
                break
            except StoreUnavailable:
                continue
        for opened in self.purchases.values():
            if opened.charge is None and not opened.is_lost and not opened.is_final:
                is_received = opened.received is not None and opened.is_readable
                opened.is_presumed = not is_received
                opened.charge = opened.reserved.estimate
                if opened.received is not None and opened.is_readable:
                    opened.charge = opened.received.charge

    async def fold(self, _letter: str) -> None:
        try:
            await self.totals.fold_page(limit=3)
        except StoreUnavailable:
            return

    async def hit(self, letter: str) -> None:
        record = draft(self.subject(letter), request_id=uuid.uuid4().hex, time=time.time())
        self.ledger.add(record.but(model="m", outcome="hit", saved_micros=11, images_served=1))
        self.hits, self.saved = self.hits + 1, self.saved + 11
        await self.write()

    async def refuse(self, letter: str) -> None:
        record = draft(self.subject(letter), request_id=uuid.uuid4().hex, time=time.time())
        self.ledger.add_refusal(record.but(model="m", error="code", status=429))
        self.refusals += 1
        await self.write()

    async def write(self) -> None:
        try:
            await self.ledger.write()
            await self.ledger.append_refusals(ends_minute=True)
        except StoreUnavailable:
            return

    # ── the books ───────────────────────────────────────────────────────────────────────────

    async def records(self) -> list[Record]:
        page = ReadLedger("", limit=100_000)
        found = [Record.decode(data) for _, data in await execute(self.store, page)]
        return [record for record in found if record.team == self.name]

    async def windows(self, subject: str, kind: str = "used") -> Amounts | set[Any]:
        """The amounts in the windows of all periods, which are the same."""
        found = set()
        for period in CALENDAR_PERIODS:
            counters = tuple(Window(subject, unit, period) for unit in UNITS)
            states = await execute(self.store, PeekCounters(counters))
            found.add(Amounts(*(getattr(state, kind) for state in states)))
        return found.pop() if len(found) == 1 else found

    async def running(self, subject: str) -> RunningTotal:
        return (await execute(self.store, ReadRunningTotals((subject,))))[0]

    async def totals_of(self, bucket: Any, *, by_user: bool = False) -> Counter[str]:
        found: Counter[str] = Counter()
        since = time.time() - 3 * 86_400
        rows = await self.totals.read(since, since + 6 * 86_400, bucket=bucket, by_user=by_user)
        for row in rows:
            if row.dimensions["team"] != self.name:
                continue
            for name in ("requests", "hits", "images_bought", "images_served"):
                found[name] += getattr(row.sums, name)
            for name in ("cost_micros", "saved_micros", "presumed_micros"):
                found[name] += getattr(row.sums, name)
            found["tokens"] += sum(row.sums.tokens.values())
            found["costs"] += sum(row.sums.costs.values())
        return found

    async def verify(self) -> Verified:
        async def subjects() -> list[tuple[str, str | None]]:
            return [(f"{self.name}-{number}", self.name) for number in range(2)]

        settings = VerificationSettings(time_zone="UTC")
        verification = Verification(self.store, settings, worker="me", subjects=subjects, rest=0.0)
        return await verification.run()

    def counted(self, name: str) -> float:
        return sum(
            sample.value
            for metrics in self.metrics
            for family in metrics._registry.collect()
            for sample in family.samples
            if sample.name == f"gateway_{name}"
        )


def added(amounts: Sequence[Amounts]) -> Amounts:
    return Amounts(*(sum(getattr(one, unit) for one in amounts) for unit in UNITS))


def story(*names: str, fate: str = "lost") -> list[tuple[tuple[str, str, Any], str]]:
    """Steps of one purchase; the last one has a fate."""
    amounts = {"reserve": Amounts(1, 40, 500), "deliver": Amounts(2, 50, 900)}
    amounts["deliver in vain"] = amounts["receive"] = amounts["deliver"]
    amounts["buy while the store is away"] = amounts["reserve"]
    steps = [((name, "a", amounts.get(name)), "") for name in names]
    return [*steps[:-1], (steps[-1][0], fate)]


@example(steps=story("reserve", "damage", "recover"))
@example(steps=story("reserve", "damage", "receive"))
@example(steps=story("reserve", "recover", "deliver"))
@example(steps=story("reserve", "recover", "fold", "deliver", fate="half"))
@example(steps=story("reserve", "recover", "fold", "fail for free"))
@example(steps=story("reserve", "lose", "recover", "deliver"))
@example(steps=story("reserve", "recover", "deliver in vain"))
@example(steps=[*story("buy while the store is away"), *story("lose", "fail presumed")])
@settings(
    max_examples=50,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(steps=st.lists(st.tuples(STEPS, FATES), max_size=24))
async def test_the_books_agree_after_any_sequence_of_purchases(
    store: Store, lose_journal: LoseJournal, steps: list[tuple[tuple[str, str, Any], str]]
) -> None:
    play = Play(store, lose_journal)
    with pytest.MonkeyPatch.context() as patch, structlog.testing.capture_logs():
        patch.setattr(settlement, "RETRY_SECONDS", (0.0,))
        before, total_before = await play.windows("everyone"), await play.running("everyone")
        for step, fate in steps:
            play.flaky.fate = fate
            await play.step(*step)
        play.flaky.fate = ""
        await play.recover("a")
        await play.write()

    purchases = [one for one in play.purchases.values() if one.charge is not None]
    by_key = {
        subject: added([p.charge for p in purchases if p.charge and p.record.key_id == subject])
        for subject in (f"{play.name}-0", f"{play.name}-1")
    }
    spent = added(list(by_key.values()))
    records = await play.records()
    assert added([Amounts(r.images, sum(r.tokens.values()), r.cost_micros) for r in records]) == (
        spent
    )

    assert [sum(r.costs.values()) for r in records] == [r.cost_micros for r in records]

    # Windows and running totals, of key, team and everyone.
    assert isinstance(before, Amounts)
    everyone = await play.windows("everyone")
    assert isinstance(everyone, Amounts)
    assert everyone - before == spent
    for key_id, of_key in by_key.items():
        assert await play.windows(f"key:{key_id}") == of_key
        running = await play.running(f"key:{key_id}")
        assert running.charged - running.corrected == of_key.usd_micros
    assert await play.windows(limit_subjects("", play.name)[1]) == spent
    running = await play.running(f"team:{play.name}")
    assert running.charged - running.corrected == spent.usd_micros
    assert running.saved == sum(record.saved_micros for record in records)
    total = await play.running("everyone")
    moved = [now - then for now, then in zip(total, total_before, strict=True)]
    assert moved == list(running)
    if not any(one.is_lost for one in play.purchases.values()):
        assert await play.windows(f"team:{play.name}", "reserved") == Amounts()
    assert not [j for j in await execute(store, OpenJournals()) if j.worker == play.name]

    # What the gateway itself says. A lost journal leaves its reservation, also for later plays.
    verified = await play.verify()
    assert [one for one in verified.shown if one.book != "reserved"] == []
    assert not verified.not_compared

    # Metrics only rise, so they have what was charged, without what corrections took back.
    assert play.counted("cost_usd_total") == pytest.approx(running.charged / 1e6)

    # The totals, before and after the rest is folded.
    reported: Counter[str] = Counter(
        requests=len(purchases) + play.hits + play.refusals,
        hits=play.hits,
        images_bought=spent.images,
        images_served=play.hits,
        cost_micros=spent.usd_micros,
        saved_micros=running.saved,
        presumed_micros=sum(p.charge.usd_micros for p in purchases if p.charge and p.is_presumed),
        tokens=spent.tokens,
        costs=spent.usd_micros,
    )
    for _ in range(2):
        for bucket in BUCKETS:
            assert await play.totals_of(bucket) == reported
        assert await play.totals_of("day_in_zone", by_user=True) == reported
        while await play.totals.fold_page():
            continue
