"""The books through the front door: windows, records and running totals say the same."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from gateway.billing.pricing import Cost
from gateway.calendar import Calendar
from gateway.errors import StoreUnavailable
from gateway.images import Amounts, Record
from gateway.limits import CALENDAR_PERIODS
from gateway.purchasing.charges import Charged
from gateway.store.batch import execute
from gateway.store.commands import Counter, OpenJournals, PeekCounters, Receive, Settle
from gateway.store.protocol import Store
from gateway.store.sqlite.connection import connect
from gateway.wiring import stores
from gateway.wiring.stores import DATABASE, open_store
from tests.gateways import (
    Client,
    InProcess,
    Spent,
    Upstream,
    open_to_both,
    read_spent,
    run_processes,
)
from tests.http.conftest import OpenGateway
from tests.http.test_recovery import QUICK, SLOW, LosesResult, until_purchases
from tests.journals import estimate, leave_purchase
from tests.moved_calendar import MovedCalendar, before_new_year
from tests.nothing_kept import NothingKept
from tests.redis_masters import delete_matching
from tests.waiting import GENEROUS_SECONDS, eventually, generous


async def usd_micros(gateway: InProcess, scope: str, *, kind: str = "used") -> tuple[int, ...]:
    """The money in a scope's windows of day, week and month."""
    counters = tuple(Counter(scope, "usd_micros", period) for period in CALENDAR_PERIODS)
    async with open_store(gateway.settings) as (store, _):
        states = await execute(store, PeekCounters(counters))
    return tuple(getattr(state, kind) for state in states)


async def running(gateway: InProcess) -> dict[tuple[str, str, str], int]:
    """(charged, corrected or saved; scope; name) → micro-dollars, from `/metrics`."""
    found = {}
    for sample, value in (await gateway.client.metrics()).items():
        metric, _, labels = sample.partition("{")
        kind = metric.removeprefix("gateway_").removesuffix("_usd_total")
        if "scope=" in labels:
            pairs = dict(pair.split("=", 1) for pair in labels.rstrip("}").split(","))
            key = kind, pairs["scope"].strip('"'), pairs["name"].strip('"')
            found[key] = round(value * 1e6)
    return found


async def counted(gateway: InProcess, metric: str) -> float:
    samples = (await gateway.client.metrics()).items()
    return sum(value for name, value in samples if name.startswith(f"gateway_{metric}{{"))


def cost(records: Sequence[Record]) -> int:
    return sum(record.cost_micros for record in records)


def lose_journals(gateway: InProcess) -> None:
    """As a store does that was restored from an older copy."""
    if (url := gateway.settings.store.redis_url) is not None:
        delete_matching(url.get_secret_value(), "*:journal:*", "*:open:*")
        return
    db = connect(gateway.settings.store.data_dir / DATABASE, read_only=False)
    db.execute("DELETE FROM journals")
    db.close()


# ── windows ─────────────────────────────────────────────────────────────────────────────────


async def test_key_team_and_everyone_are_counted_without_a_limit(gateway: InProcess) -> None:
    alice = await gateway.client.with_key("alice", team="art")
    bob = await gateway.client.with_key("bob", team="art")
    carol = await gateway.client.with_key("carol")
    for client in (alice, bob, carol):
        await client.ask(f"an otter for {client.key_id}")
    await alice.ask(f"an otter for {bob.key_id}")  # a hit

    by_key = {r.key: r.cost_micros for r in await gateway.ledger() if r.cost_micros}
    assert len(by_key) == 3
    for client, name in ((alice, "alice"), (bob, "bob"), (carol, "carol")):
        assert await usd_micros(gateway, f"key:{client.key_id}") == (by_key[name],) * 3
    assert await usd_micros(gateway, "team:art") == (by_key["alice"] + by_key["bob"],) * 3
    assert await usd_micros(gateway, "everyone") == (sum(by_key.values()),) * 3
    assert await usd_micros(gateway, "everyone", kind="reserved") == (0, 0, 0)


async def test_a_budget_of_a_week_counts_what_was_spent_before_it_was_set(
    gateway: InProcess,
) -> None:
    alice = await gateway.client.with_key("alice")
    await alice.ask("an otter")
    spent = cost(await gateway.ledger())
    limits = {"usd_per_week": (spent + estimate("a fox").usd_micros - 1) / 1e6}
    await alice.admin("PATCH", f"/admin/keys/{alice.key_id}", {"limits": limits})

    refused = await alice.ask("a fox")

    assert (refused.status, refused.error["code"]) == (429, "insufficient_quota")
    assert "usd_per_week" in refused.error["message"]
    assert refused.headers["x-should-retry"] == "false"


async def test_the_time_zone_decides_when_a_budget_resets(
    open_gateway: OpenGateway, upstream: Upstream
) -> None:
    async with open_gateway(billing={"time_zone": "Asia/Kolkata"}) as gateway:
        alice = await gateway.client.with_key(limits={"usd_per_day": 0})
        refused = await alice.ask("an otter")
    left = 86_400 - (time.time() + 5.5 * 3600) % 86_400
    shown = refused.error["message"].rpartition("resets in ")[2].rstrip(".")
    hours, minutes, seconds = re.findall(r"[\d.]+", f"0h0m{shown}")[-3:]
    shown_seconds = 3600 * int(hours) + 60 * int(minutes) + float(seconds)
    assert shown_seconds == pytest.approx(left, abs=GENEROUS_SECONDS)


# ── the time of records ─────────────────────────────────────────────────────────────────────


async def test_a_purchase_over_a_new_year_is_of_the_old_one_in_windows_and_ledger(
    open_gateway: OpenGateway, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = before_new_year(time.time(), 2)
    new_year = time.time() + 2
    monkeypatch.setattr(stores, "Calendar", lambda zone: MovedCalendar(moved, zone))
    async with open_gateway() as gateway:
        alice = await gateway.client.with_key(team="art")
        async with upstream.hold() as gate:
            asking = asyncio.create_task(alice.ask("an otter"))
            await gate.until(1)

            async def has_begun() -> bool:
                return (
                    await usd_micros(gateway, "everyone", kind="reserved")
                    != (estimate("an otter").usd_micros,) * 3
                )

            await eventually(has_begun)
        await asking
        hit = await alice.ask("an otter")
        assert hit.cache_status.startswith("hit")
        by_outcome = {record.outcome: record for record in await gateway.ledger()}
        bought, week = by_outcome["bought"], (0, by_outcome["bought"].cost_micros, 0)
        assert bought.time < new_year <= by_outcome["hit"].time + 1
        for scope in (f"key:{alice.key_id}", "team:art", "everyone"):
            assert await usd_micros(gateway, scope) == week
            assert await usd_micros(gateway, scope, kind="reserved") == (0, 0, 0)
        monkeypatch.setattr(stores, "Calendar", lambda zone: MovedCalendar(moved - 86_400, zone))
        assert await usd_micros(gateway, "everyone") == (bought.cost_micros,) * 3


async def test_records_have_the_time_of_the_store_and_not_of_the_gateway(
    gateway: InProcess, alice: Client, upstream: Upstream
) -> None:
    """The gateway's clock is a day ahead; latencies still go by it alone."""
    services = gateway.gateway.services
    ahead: Any = lambda: time.time() + 86_400  # noqa: E731
    object.__setattr__(services, "clock", ahead)
    services.proxy._images._clock = ahead
    services.proxy._recorder._clock = ahead
    started = time.time()

    await alice.ask("an otter")
    await alice.ask("an otter")
    await alice.ask("[[sim:moderation]] no")
    await alice.ask(size="9x9")

    records = await gateway.ledger()
    assert sorted(r.outcome for r in records) == ["bought", "failed", "hit", "refused"]
    for record in records:
        assert started - 1 <= record.time <= time.time() + 1, record
        assert 0 <= record.latency_ms < 60_000, record


async def test_a_recovered_purchase_has_the_time_of_its_reservation(
    open_gateway: OpenGateway,
) -> None:
    """Its payload was encoded before, with the time of its worker's clock."""
    async with open_gateway(workers=SLOW) as gateway:
        alice = await gateway.client.with_key()
        before = time.time()
        for prompt, received in (("came", True), ("lost", False)):
            await leave_purchase(gateway.settings, alice.secret, prompt, received=received)
        after = time.time()
        async with open_store(gateway.settings) as (store, _):
            times = {j.purchase: j.reserved_at for j in await execute(store, OpenJournals())}
        await gateway.recover_expired()
        records = [record for record in await gateway.ledger() if record.cost_micros]
        assert {record.id: record.time for record in records} == times
        assert all(before <= at <= after for at in times.values())


async def test_a_purchase_during_an_outage_has_the_time_of_its_late_reservation(
    gateway: InProcess, alice: Client, upstream: Upstream
) -> None:
    await alice.ask("known")  # the worker trusts the key for an hour
    observed = gateway.gateway.store._store._store  # type: ignore[attr-defined]
    working, observed._store = observed._store, _Unavailable(observed._store.name)
    async with upstream.hold() as gate:
        asking = asyncio.create_task(alice.ask("an otter"))
        await gate.until(1)
    reply = await asking
    assert reply.status == 200
    back = time.time()
    observed._store = working
    async with generous():
        await gateway.gateway.tasks.drain()

    (record,) = [r for r in await gateway.ledger() if r.cost_micros and r.time >= back]
    assert record.outcome == "bought"
    assert await usd_micros(gateway, "everyone") == (cost(await gateway.ledger()),) * 3


class _Unavailable:
    kept = NothingKept()

    def __init__(self, name: str) -> None:
        self.name = name

    async def execute(self, commands: Sequence[Any]) -> list[Any]:
        raise StoreUnavailable

    def watch(self, flight: str) -> Any:
        raise StoreUnavailable


# ── running totals and counters ─────────────────────────────────────────────────────────────


async def test_running_totals_are_shown_from_the_start(gateway: InProcess) -> None:
    await gateway.client.with_key("alice", team="art")
    shown = await running(gateway)
    for kind in ("charged", "corrected", "saved"):
        for scope, name in (
            ("key", "alice"),
            ("team", "art"),
            ("everyone", ""),
            ("model", "gpt-image-1"),
        ):
            assert shown[kind, scope, name] == 0


async def test_running_totals_are_the_ledger_on_every_gateway(open_gateway: OpenGateway) -> None:
    async with open_gateway() as here, open_gateway() as there:
        alice = await here.client.with_key("alice", team="art")
        bob = Client(there.client.url, alice.session, alice.secret, alice.key_id)
        await alice.ask("an otter")
        await bob.ask("a fox")
        for _ in range(3):
            await bob.ask("an otter")
        records = await there.ledger()
        saved = sum(record.saved_micros for record in records)
        assert cost(records) > 0 < saved
        for gateway in (here, there):
            shown = await running(gateway)
            for scope, name in (("key", "alice"), ("team", "art"), ("everyone", "")):
                assert shown["charged", scope, name] == cost(records)
                assert shown["corrected", scope, name] == 0
                assert shown["saved", scope, name] == saved


async def test_a_renamed_key_keeps_its_total_and_a_revoked_one_is_not_shown(
    gateway: InProcess,
) -> None:
    alice = await gateway.client.with_key("alice")
    await alice.ask("an otter")
    await alice.admin("PATCH", f"/admin/keys/{alice.key_id}", {"name": "alison"})
    shown = await running(gateway)
    assert shown["charged", "key", "alison"] == cost(await gateway.ledger())
    assert ("charged", "key", "alice") not in shown
    await alice.admin("DELETE", f"/admin/keys/{alice.key_id}")
    assert ("charged", "key", "alison") not in await running(gateway)


@pytest.mark.parametrize("fails", [False, True], ids=["bought", "failed"])
async def test_a_settlement_whose_reply_was_lost_is_counted_once(
    gateway: InProcess, alice: Client, fails: bool
) -> None:
    evicting: Any = gateway.gateway.store
    evicting._store = LosesResult(evicting._store, Settle, error=StoreUnavailable)

    await alice.ask("[[sim:tiny-png]] an otter" if fails else "an otter")
    async with generous():
        await gateway.gateway.tasks.drain()

    spent = cost(await gateway.ledger())
    assert spent > 0
    assert await counted(gateway, "cost_usd_total") == pytest.approx(spent / 1e6)
    assert (await running(gateway))["charged", "everyone", ""] == spent


@pytest.mark.parametrize(
    "prompt", ["a late otter", "[[sim:moderation]] a late refusal"], ids=["image", "refusal"]
)
async def test_a_late_correction_is_counted_once_in_every_metric(
    open_gateway: OpenGateway, upstream: Upstream, prompt: str
) -> None:
    async with open_gateway(workers=SLOW) as late, open_gateway(workers=QUICK) as recoverer:
        alice = await late.client.with_key(team="art")
        async with upstream.hold():
            asking = asyncio.create_task(alice.ask(prompt))
            await until_purchases(recoverer, 1)
        await asking
        async with generous():
            await late.gateway.tasks.drain()
        presumed, correction = await until_purchases(recoverer, 2)

        assert correction.time == presumed.time
        assert correction.corrected_at is not None
        assert correction.corrected_at >= correction.time
        spent = cost([presumed, correction])
        for gateway in (late, recoverer):
            shown = await running(gateway)
            for scope, name in (("key", "alice"), ("team", "art"), ("everyone", "")):
                assert shown["charged", scope, name] == presumed.cost_micros
                assert shown["corrected", scope, name] == -correction.cost_micros > 0
        assert await usd_micros(late, "team:art") == (spent,) * 3
        usd = [await counted(gateway, "cost_usd_total") for gateway in (late, recoverer)]
        tokens = [await counted(gateway, "tokens_total") for gateway in (late, recoverer)]
        images = [await counted(gateway, "images_total") for gateway in (late, recoverer)]
        assert usd == pytest.approx([0, presumed.cost_micros / 1e6])
        assert tokens == [0, sum(presumed.tokens.values())]
        assert images == [0, presumed.images]


class LosesCorrection:
    """A store that executes the first correction, but loses its result."""

    def __init__(self, store: Store) -> None:
        self.name, self.kept = store.name, store.kept
        self.watch = store.watch
        self._store = store
        self.has_lost = False

    async def execute(self, commands: Sequence[Any]) -> list[Any]:
        results = await self._store.execute(commands)
        corrects = any(isinstance(command, Settle) and command.correct for command in commands)
        if corrects and not self.has_lost:
            self.has_lost = True
            raise StoreUnavailable
        return results


async def test_a_correction_upwards_whose_reply_was_lost_is_counted_once(
    open_gateway: OpenGateway, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "gateway.purchasing.purchase.charge_answer",
        lambda *given, **more: Charged(
            Amounts(1, 9000, 500_000),
            {"text_in": 9, "image_out": 8991},
            Cost(500_000, {"text_in": 45, "image_out": 499_955}, {}),
            ("over_estimate",),
        ),
    )
    async with open_gateway(workers=SLOW) as late, open_gateway(workers=QUICK) as recoverer:
        settlements = late.gateway.recovery._settlements
        settlements._store = losing = LosesCorrection(settlements._store)
        alice = await late.client.with_key()
        async with upstream.hold():
            asking = asyncio.create_task(alice.ask("a late otter"))
            (presumed,) = await until_purchases(recoverer, 1)
        await asking
        async with generous():
            await late.gateway.tasks.drain()
        _, correction = await until_purchases(recoverer, 2)

        assert losing.has_lost
        assert presumed.cost_micros + correction.cost_micros == 500_000 > presumed.cost_micros
        assert sum(correction.costs.values()) == correction.cost_micros
        usd = [await counted(gateway, "cost_usd_total") for gateway in (late, recoverer)]
        assert usd == pytest.approx([correction.cost_micros / 1e6, presumed.cost_micros / 1e6])
        tokens = [await counted(gateway, "tokens_total") for gateway in (late, recoverer)]
        assert sum(tokens) == 9000 > sum(presumed.tokens.values())
        shown = await running(late)
        assert shown["charged", "everyone", ""] == 500_000
        assert shown["corrected", "everyone", ""] == 0
        assert await usd_micros(late, "everyone") == (500_000,) * 3


async def test_every_worker_shows_the_same_running_totals_once(
    tmp_path: Path, upstream: Upstream, store_url: str | None
) -> None:
    async with run_processes(
        tmp_path / "two", upstream.base_url, workers=2, redis_url=store_url
    ) as (processes, client):
        alice = await client.with_key("alice")
        for number in range(4):
            await alice.ask(f"otter {number % 3}")
        spent = cost(await processes.records(4))
        async with open_to_both(processes, client) as connections:
            for connection in connections.values():
                samples = await connection.metrics()
                found = [
                    value
                    for name, value in samples.items()
                    if name.startswith("gateway_charged_usd_total{") and "alice" in name
                ]
                assert found == [pytest.approx(spent / 1e6)]


async def test_a_recovery_whose_reply_was_lost_is_counted_once(open_gateway: OpenGateway) -> None:
    async with open_gateway(workers=SLOW) as gateway:
        alice = await gateway.client.with_key()
        for prompt, received in (("came", True), ("lost", False)):
            await leave_purchase(gateway.settings, alice.secret, prompt, received=received)
        settlements = gateway.gateway.recovery._settlements
        settlements._store = LosesResult(settlements._store, Settle, error=StoreUnavailable)
        with pytest.raises(StoreUnavailable):
            await gateway.recover_expired()
        await gateway.recover_expired()

        spent = cost(await gateway.ledger())
        assert await counted(gateway, "cost_usd_total") == pytest.approx(spent / 1e6)
        assert (await running(gateway))["charged", "everyone", ""] == spent
        assert await read_spent(gateway.settings, alice.key_id) == Spent(spent, 2, 0, 0)


@pytest.mark.parametrize("is_readable", [False, True], ids=["unreadable", "unfinished"])
async def test_a_journal_closed_as_reserved_whose_reply_was_lost_is_counted_once(
    open_gateway: OpenGateway, monkeypatch: pytest.MonkeyPatch, is_readable: bool
) -> None:
    async with open_gateway(workers=SLOW) as gateway:
        alice = await gateway.client.with_key()
        left = await leave_purchase(gateway.settings, alice.secret, "an otter", received=False)
        recovery: Any = gateway.gateway.recovery
        if is_readable:
            monkeypatch.setattr("gateway.purchasing.recovery.MAX_ATTEMPTS", 1)
            failing: Any = lambda *given, **more: 1 / 0  # noqa: E731
            monkeypatch.setattr(recovery._settlements, "try_settle_failure", failing)
        else:
            await execute(gateway.gateway.store, Receive(left.purchase, b"unreadable"))
        recovery._store = LosesResult(recovery._store, Settle, error=StoreUnavailable)
        with pytest.raises(StoreUnavailable):
            await gateway.recover_expired()
        for _ in range(2):
            await gateway.recover_expired()

        (record,) = await gateway.ledger()
        assert record.cost_micros == left.estimate.usd_micros
        assert await counted(gateway, "cost_usd_total") == pytest.approx(record.cost_micros / 1e6)


# ── a store that lost writes ────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("fails", [False, True], ids=["bought", "failed"])
async def test_a_purchase_whose_reservation_was_lost_is_recorded_and_charged(
    gateway: InProcess, upstream: Upstream, capsys: pytest.CaptureFixture[str], fails: bool
) -> None:
    alice = await gateway.client.with_key(team="art")
    async with upstream.hold() as gate:
        asking = asyncio.create_task(
            alice.ask("[[sim:tiny-png]] an otter" if fails else "an otter")
        )
        await gate.until(1)
        lose_journals(gateway)
    reply = await asking

    (record,) = await gateway.ledger()
    assert reply.status == (502 if fails else 200)
    assert record.flags[-1] == "unreserved"
    assert record.cost_micros > 0
    for scope in (f"key:{alice.key_id}", "team:art", "everyone"):
        assert await usd_micros(gateway, scope) == (record.cost_micros,) * 3
    shown = await running(gateway)
    assert shown["charged", "key", "alice"] == record.cost_micros
    assert await counted(gateway, "cost_usd_total") == pytest.approx(record.cost_micros / 1e6)
    output = capsys.readouterr()
    assert (output.out + output.err).count("reservation_lost") == 1


async def test_the_calendar_of_the_settings_is_that_of_the_store(
    open_gateway: OpenGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    zones = []

    def make(zone: Any) -> Calendar:
        zones.append(str(zone))
        return Calendar(zone)

    monkeypatch.setattr(stores, "Calendar", make)
    async with open_gateway(billing={"time_zone": "Africa/Cairo"}):
        assert set(zones) == {"Africa/Cairo"}
