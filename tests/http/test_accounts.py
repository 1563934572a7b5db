"""Several accounts at upstream: failover without a second charge, budgets, switches, groups."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import os
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from gateway.configuration.expand import ConfigError
from gateway.errors import StoreUnavailable
from gateway.images import Record
from gateway.net.guard import parse_allow_list
from gateway.process.upstream_check import check_upstreams
from gateway.purchasing.journal import decode_payload
from gateway.room_settings import client_settings, fetch_settings
from gateway.store.batch import execute
from gateway.store.commands import Counter, OpenJournals, PeekCounters, Reroute, Reserve
from gateway.store.protocol import Command
from gateway.upstream.pool import REST_SECONDS
from gateway.wiring.stores import open_store
from tests.gateways import (
    SHIPPED,
    Client,
    InProcess,
    PolicyFile,
    Reply,
    Upstream,
    make_settings,
    read_spent,
    run_gateway,
    run_processes,
    run_upstream,
)
from tests.ports import closed_port
from tests.stores import usually_on
from tests.waiting import DEADLINE_SECONDS, eventually, run_out_of_time

MODEL = "gpt-image-2"
KEYS = ("sk-secret-of-the-first", "sk-secret-of-the-second")


@dataclass
class House:
    """A gateway with two accounts, each at a simulated upstream of its own."""

    gateway: InProcess
    first: Upstream
    second: Upstream
    alice: Client

    @property
    def upstreams(self) -> tuple[Upstream, Upstream]:
        return self.first, self.second

    async def asked(self) -> list[int]:
        """How many image requests each upstream got since the last call."""
        counts = [len(await one.bodies()) for one in self.upstreams]
        for one in self.upstreams:
            await one.forget()
        return counts


@asynccontextmanager
async def open_house(
    folder: Path,
    redis_url: str | None = None,
    first: dict[str, Any] | None = None,
    second: dict[str, Any] | None = None,
    *,
    policy: PolicyFile = SHIPPED,
    **given: Any,
) -> AsyncIterator[House]:
    async with AsyncExitStack() as stack:
        a, b = [await stack.enter_async_context(run_upstream(api_key=key)) for key in KEYS]
        accounts = [
            {"name": "first", "base_url": a.base_url, "api_key": KEYS[0], **(first or {})},
            {
                "name": "second",
                "base_url": b.base_url,
                "api_key": KEYS[1],
                "priority": 2,
                "price_factor": "1.5",
                **(second or {}),
            },
        ]
        settings = make_settings(folder, "", redis_url, upstreams=accounts, **given)
        gateway = await stack.enter_async_context(run_gateway(settings, policy=policy))
        yield House(gateway, a, b, await gateway.client.with_key("alice"))


async def ask(house: House, prompt: str, **body: Any) -> Reply:
    return await house.alice.ask(prompt, model=MODEL, quality="low", size="1024x1024", **body)


# ── the failover table ──────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Kind:
    """A failure of an account."""

    fault: str
    status: int
    """That the client sees if no other account takes the purchase."""
    is_free: bool = True
    """It is certain that nothing was charged."""
    times: int = 1
    """Attempts at the account that fails, with its retries."""
    flag: str | None = None
    """Of the record, if something is or may be charged."""


KINDS = {
    "429": Kind("429", 429, times=3),
    "429 of a quota": Kind("status=429;code=insufficient_quota", 429),
    "503": Kind("status=503", 503, times=3),
    "401": Kind("status=401", 502),
    "403": Kind("org-unverified", 502),
    "404 for the model": Kind("status=404;code=model_not_found", 404),
    "400 for the model": Kind("model-unknown", 400),
    "billing limit": Kind("billing-limit", 400),
    "400": Kind("status=400", 400, is_free=False),
    "moderation": Kind("moderation;stage=input", 400, is_free=False),
    "500": Kind("status=500", 500, is_free=False, flag="assumed_free"),
    "502 of an edge": Kind("status=502", 502, is_free=False, flag="presumed"),
    "cut": Kind("reset", 502, is_free=False, flag="presumed"),
    "200 with an error": Kind("error-in-200", 500, is_free=False, flag="assumed_free"),
    "200 without an image": Kind("tiny-png", 502, is_free=False, flag="undelivered"),
}


@dataclass(frozen=True)
class Case:
    """A failure at one of the two accounts."""

    name: str
    kind: Kind
    streams: bool
    position: str

    @property
    def fails(self) -> bool:
        """Whether the client gets an error."""
        return self.position == "second" or not self.kind.is_free

    async def ask(self, house: House) -> Reply:
        faults = [self.kind.fault] * self.kind.times
        await house.first.play(*(faults if self.position == "first" else ["status=401"]))
        await house.second.play(*(faults if self.position == "second" else []))
        prompt = f"{self.name} {self.position} {self.streams}"
        return await ask(house, prompt, **({"stream": True} if self.streams else {}))

    def check(self, reply: Reply, record: Record, asked: list[int]) -> None:
        kind, is_first = self.kind, self.position == "first"
        assert asked == [1, int(kind.is_free) if is_first else kind.times], self
        assert ("error" in reply.body.decode()[:400]) == self.fails, (self, reply.body[:300])
        taking = "first" if is_first and not kind.is_free else "second"
        assert record.upstream == taking, self
        # A stream that fails after its headers may have begun before an account was chosen.
        unnamed = taking if self.streams and self.fails else None
        assert reply.headers.get("x-gateway-upstream", unnamed) == taking, self
        assert not any(key in reply.body.decode() for key in KEYS), self
        if not self.fails:
            assert (record.outcome, record.cost_micros > 0) == ("bought", True), self
            return
        assert record.outcome == "failed", self
        assert kind.flag is None or kind.flag in record.flags, (self, record.flags)
        is_charged = kind.flag not in (None, "assumed_free")
        assert (record.cost_micros > 0) == is_charged, self
        if reply.headers["Content-Type"].startswith("application/json"):
            assert reply.status == record.status == kind.status, self
            assert not is_charged or reply.headers["x-should-retry"] == "false", self


@usually_on("sqlite")
async def test_each_failure_at_the_first_and_at_the_second_account(
    tmp_path: Path, store_url: str | None
) -> None:
    """Who was asked, who charged, and what the client saw, plain and streamed."""
    breaker = {"breaker": {"failures": 0}}
    async with open_house(tmp_path, store_url, breaker, breaker) as house:
        clock = house.gateway.stop_time()
        spent, seen = 0, set[str]()
        for name, kind in KINDS.items():
            for streams in (False, True):
                for position in ("first", "second"):
                    clock.now += REST_SECONDS + 1  # no account rests any more
                    case = Case(name, kind, streams, position)
                    reply = await case.ask(house)
                    (record,) = [r for r in await house.gateway.ledger() if r.id not in seen]
                    case.check(reply, record, await house.asked())
                    seen.add(record.id)
                    spent += record.cost_micros
        found = await read_spent(house.gateway.settings, house.alice.key_id)
        assert (found.usd_micros, found.reserved_micros) == (spent, 0)
        metrics = await house.alice.metrics()
    free = sum(kind.is_free for kind in KINDS.values())
    # Each case at the second account has left the first one too.
    assert metrics['gateway_upstream_failovers_total{upstream="first"}'] == 2 * (free + len(KINDS))
    assert metrics['gateway_upstream_failovers_total{upstream="second"}'] == 0


async def test_a_time_out_is_charged_and_no_other_account_is_asked(tmp_path: Path) -> None:
    deadline = {"timeout": f"{DEADLINE_SECONDS}s"}
    async with open_house(tmp_path, None, deadline, deadline) as house:
        await house.first.play("hang")
        reply = await run_out_of_time(
            ask(house, "an otter"), once=lambda: house.first.has_received(1)
        )
        assert reply.status == 504
        assert await house.asked() == [1, 0]
        (record,) = await house.gateway.ledger()
    assert (record.upstream, record.flags) == ("first", ("presumed",))


# ── the journal ─────────────────────────────────────────────────────────────────────────────


async def test_the_journal_names_the_account_before_it_is_asked(
    tmp_path: Path, store_url: str | None
) -> None:
    """A dead worker's purchase is charged at the account that was asked last, and only there."""
    async with open_house(tmp_path, store_url) as house:
        await house.first.play("status=401")
        async with house.second.hold():
            asking = asyncio.create_task(ask(house, "an otter", stream=False))
            await house.second.until_sent()
            (journal,) = await execute(house.gateway.gateway.store, OpenJournals())
            payload = decode_payload(journal.payload)
            reserved = await read_spent(house.gateway.settings, house.alice.key_id)
            # The price at the dearest account is reserved, which is the second one here.
            assert (payload.record.upstream, payload.estimate.usd_micros) == (
                "second",
                reserved.reserved_micros,
            )
            async with run_gateway(house.gateway.settings) as other:
                await other.recover_expired()
            presumed = await read_spent(house.gateway.settings, house.alice.key_id)
            assert (presumed.usd_micros, presumed.reserved_micros) == (
                payload.estimate.usd_micros,
                0,
            )
        assert (await asking).status == 200
        bought = await eventually(lambda: _corrected(house))
        spent = await read_spent(house.gateway.settings, house.alice.key_id)
        assert spent.usd_micros == sum(record.cost_micros for record in bought)
        assert {record.upstream for record in bought} == {"second"}
        assert await house.asked() == [1, 1]


@usually_on("sqlite")
async def test_the_journal_names_the_account_that_is_asked_again_after_a_lost_reply(
    tmp_path: Path, store_url: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second account is passed over, because it is not known whether the journal names it."""
    async with open_house(tmp_path, store_url) as house:
        await house.first.play("status=429")
        store, lost = house.gateway.gateway.store, list[Reroute]()
        purchases: Any = house.gateway.gateway.services.proxy._images._purchases

        class LosesReply:
            """Carries out the first `Reroute`, and loses the reply."""

            async def execute(self, commands: Sequence[Command[Any]]) -> list[Any]:
                found = await store.execute(commands)
                if not lost and isinstance(commands[0], Reroute):
                    lost.append(commands[0])
                    raise StoreUnavailable
                return list(found)

        monkeypatch.setattr(purchases, "_store", LosesReply())
        asking = asyncio.create_task(ask(house, "an otter", stream=False))
        await eventually(lambda: lost)
        async with house.first.hold():
            await house.first.until_sent(2)
            (journal,) = await execute(store, OpenJournals())
            assert decode_payload(journal.payload).record.upstream == "first"
        assert (await asking).headers["x-gateway-upstream"] == "first"
        assert await house.asked() == [2, 0]


@pytest.mark.parametrize("is_lost", [False, True], ids=["slow", "lost"])
async def test_a_failover_while_the_journal_is_opened_late_is_charged_at_the_second_account(
    tmp_path: Path, store_url: str | None, monkeypatch: pytest.MonkeyPatch, is_lost: bool
) -> None:
    """The reservation at the first account is slow, or its reply is lost."""
    budget = {"limits": {"usd_per_day": "0.000001"}}  # which is no limit without the store
    async with open_house(tmp_path, store_url, second=budget) as house:
        await house.first.play("status=401")
        store, reserves = house.gateway.gateway.store, list[Command[Any]]()
        purchases: Any = house.gateway.gateway.services.proxy._images._purchases
        may_go_on = asyncio.Event()

        class ComesBack:
            """Is unavailable for the first `Reserve`, and stops at the second."""

            async def execute(self, commands: Sequence[Command[Any]]) -> list[Any]:
                found = [command for command in commands if isinstance(command, Reserve)]
                reserves.extend(found)
                if not found or len(reserves) > 2:
                    return list(await store.execute(commands))
                if len(reserves) == 1:
                    raise StoreUnavailable
                if is_lost:
                    await store.execute(commands)
                await may_go_on.wait()
                if is_lost:
                    raise StoreUnavailable
                return list(await store.execute(commands))

        async def named() -> list[str]:
            journals = await execute(store, OpenJournals())
            return [decode_payload(one.payload).record.upstream or "" for one in journals]

        monkeypatch.setattr(purchases, "_store", ComesBack())
        async with house.second.hold():
            asking = asyncio.create_task(ask(house, "an otter", stream=False))
            await house.second.until_sent()
            may_go_on.set()

            async def is_moved() -> bool:
                return await named() == ["second"]

            await eventually(is_moved)
        assert (await asking).headers["x-gateway-upstream"] == "second"

        async def is_settled() -> bool:
            return not await execute(store, OpenJournals())

        await eventually(is_settled)
        (record,) = await house.gateway.ledger()
        windows = [Counter(f"upstream:{one}", "usd_micros", "day") for one in ("first", "second")]
        found = await execute(store, PeekCounters(tuple(windows)))
        assert (record.upstream, record.flags) == ("second", ())
        assert [(one.used, one.reserved) for one in found] == [(0, 0), (record.cost_micros, 0)]
        assert (await house.gateway.gateway.verification.run()).shown == ()


@usually_on("sqlite")
async def test_a_client_gets_why_an_account_was_passed_over_rather_than_the_refusal_of_a_key(
    tmp_path: Path, store_url: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The budget of the second account is used up, or the store does not answer."""
    budget = {"limits": {"usd_per_day": "0.000001"}}
    async with open_house(tmp_path, store_url, second=budget) as house:
        await house.first.play(*["status=401"] * 2)
        reply = await ask(house, "an otter")
        assert (reply.status, reply.error["code"]) == (503, "upstream_unavailable")
        assert "no limit of your key" in reply.error["message"]
        store = house.gateway.gateway.store
        pool: Any = house.gateway.gateway.services.proxy._images._purchases._candidates
        pool._resting.clear()
        purchases: Any = house.gateway.gateway.services.proxy._images._purchases

        class CannotReroute:
            async def execute(self, commands: Sequence[Command[Any]]) -> list[Any]:
                if isinstance(commands[0], Reroute):
                    raise StoreUnavailable
                return list(await store.execute(commands))

        monkeypatch.setattr(purchases, "_store", CannotReroute())
        reply = await ask(house, "a beaver")
        assert (reply.status, reply.error["code"]) == (503, "store_unavailable")
        assert reply.headers["Retry-After"] == "2"
        assert await house.asked() == [2, 0]
        records = await house.gateway.ledger()
        assert [(one.upstream, one.status) for one in records] == [("second", 503)] * 2
        found = await read_spent(house.gateway.settings, house.alice.key_id)
        assert (found.usd_micros, found.reserved_micros) == (0, 0)


async def _corrected(house: House) -> list[Record] | None:
    records = await house.gateway.ledger()
    return records if any(record.corrects for record in records) else None


@pytest.mark.long
async def test_a_worker_that_is_killed_between_two_accounts_is_charged_at_the_second(
    tmp_path: Path, store_url: str | None
) -> None:
    async with run_upstream() as first, run_upstream() as second:
        accounts = [
            {"name": "first", "base_url": first.base_url},
            {"name": "second", "base_url": second.base_url, "priority": 2, "price_factor": "1.5"},
        ]
        options = {"upstreams": accounts, "workers": {"heartbeat": "200ms", "dead_after": "1s"}}
        async with run_processes(tmp_path, "", workers=2, redis_url=store_url, options=options) as (
            processes,
            client,
        ):
            alice = await client.with_key("alice")
            await first.play("status=401")
            async with second.hold():
                asking = asyncio.create_task(alice.ask("an otter", model=MODEL, quality="low"))
                await second.until_sent()
                async with open_store(processes.settings) as (store, _):
                    (journal,) = await execute(store, OpenJournals())
                estimate = decode_payload(journal.payload).estimate.usd_micros
                os.kill(int(journal.worker.split("-")[-2]), signal.SIGKILL)
                with pytest.raises(aiohttp.ClientError):
                    await asking

                async def is_settled() -> bool:
                    spent = await read_spent(processes.settings, alice.key_id)
                    return (spent.usd_micros, spent.reserved_micros) == (estimate, 0)

                await eventually(is_settled)
            rows = (await client.admin("GET", "/admin/requests")).json["data"]
            assert [row["upstream"] for row in rows] == ["second"]
            assert [len(await one.bodies()) for one in (first, second)] == [1, 1]


async def test_followers_and_replays_of_a_purchase_that_went_on_to_another_account(
    tmp_path: Path, store_url: str | None
) -> None:
    async with open_house(tmp_path, store_url) as house:
        await house.first.play("status=403")
        headers = {"Idempotency-Key": "once"}
        async with house.second.hold():
            leading = asyncio.create_task(ask(house, "an otter", headers=headers))
            await house.second.until_sent()
            following = asyncio.create_task(ask(house, "an otter"))
            await house.gateway.until_leased(2)
        leader, follower = await asyncio.gather(leading, following)
        replay = await ask(house, "an otter", headers=headers)
        assert leader.images == follower.images == replay.images
        assert replay.headers["idempotent-replayed"] == "true"
        assert leader.headers["x-gateway-upstream"] == "second"
        assert "x-gateway-upstream" not in {**follower.headers, **replay.headers}
        assert await house.asked() == [1, 1]
        assert (await read_spent(house.gateway.settings, house.alice.key_id)).images == 1


# ── money ───────────────────────────────────────────────────────────────────────────────────


async def test_prices_follow_the_account_and_the_dearest_one_is_reserved(
    tmp_path: Path, store_url: str | None
) -> None:
    async with open_house(tmp_path, store_url) as house:
        dry = await ask(house, "an otter", headers={"Prefer": "dry-run"})
        async with house.first.hold():
            asking = asyncio.create_task(ask(house, "an otter"))
            await house.first.until_sent()
            reserved = await read_spent(house.gateway.settings, house.alice.key_id)
            assert (await house.gateway.gateway.verification.run()).shown == ()
        await asking
        await house.first.play("status=401")
        await ask(house, "a beaver")
        cheap, dear = await house.gateway.ledger()
    prices = {"text_in": 5_000_000, "image_out": 30_000_000}
    for record, factor in ((cheap, 2), (dear, 3)):
        picos = sum(record.tokens[kind] * prices[kind] for kind in record.tokens)
        assert record.cost_micros == -(-picos * factor // (2 * 1_000_000)), record
        assert sum(record.costs.values()) == record.cost_micros
    assert cheap.tokens.keys() == prices.keys()
    assert (cheap.upstream, dear.upstream) == ("first", "second")
    estimate = dry.json["estimate_usd"] * 1e6
    assert reserved.reserved_micros == pytest.approx(estimate)
    assert estimate > 1.4 * cheap.cost_micros


async def test_an_account_over_its_budget_is_passed_over(
    tmp_path: Path, store_url: str | None
) -> None:
    budget = {"limits": {"usd_per_day": "0.020"}}
    async with open_house(tmp_path, store_url, budget, budget) as house:
        replies = []
        while not replies or replies[-1].status == 200:
            replies.append(await ask(house, f"otter {len(replies)}"))
            assert len(replies) < 20
        records = await house.gateway.ledger()
        last, listed = replies[-1], await house.alice.admin("GET", "/admin/upstream")
        assert (last.status, last.error["code"]) == (503, "upstream_unavailable")
        assert "no limit of your key" in last.error["message"]
        assert last.headers["x-should-retry"] == "false"
        # An image that is there costs nothing.
        assert (await ask(house, "otter 0")).status == 200
    bought = [record for record in records if record.outcome == "bought"]
    names = [record.upstream for record in bought]
    assert names == sorted(names)
    assert set(names) == {"first", "second"}
    for row in listed.json["data"]:
        (limit,) = row["account"]["limits"]
        spent = sum(r.cost_micros for r in bought if r.upstream == row["name"])
        assert limit["used"] == pytest.approx(spent / 1e6)
        assert (limit["max"], limit["reserved"]) == (0.02, 0)
        assert limit["used"] <= 0.02


@pytest.mark.parametrize("dear_priority", [1, 3])
async def test_a_key_is_not_refused_for_the_price_of_an_account_over_its_budget(
    tmp_path: Path, store_url: str | None, dear_priority: int
) -> None:
    spent = {"price_factor": "3", "priority": dear_priority, "limits": {"usd_per_day": "0.000001"}}
    async with open_house(tmp_path, store_url, spent, {"price_factor": "1"}) as house:
        dry = await ask(house, "an otter", headers={"Prefer": "dry-run"})
        dear_micros = round(dry.json["estimate_usd"] * 1e6)
        cheap_micros = -(-dear_micros // 3)
        bob = await house.gateway.client.with_key("bob", limits={"usd_per_day": cheap_micros / 1e6})
        low = {"model": MODEL, "quality": "low", "size": "1024x1024"}
        async with house.second.hold():
            asking = asyncio.create_task(bob.ask("an otter", **low))
            await house.second.until_sent()
            reserved = await read_spent(house.gateway.settings, bob.key_id)
        bought = await asking
        refused = await bob.ask("a beaver", **low)
        asked = await house.asked()
        (record,) = [r for r in await house.gateway.ledger() if r.outcome == "bought"]
        assert (await house.gateway.gateway.verification.run()).shown == ()
    assert bought.status == 200, bought.body
    assert bought.headers["x-gateway-upstream"] == record.upstream == "second"
    assert reserved.reserved_micros == cheap_micros
    assert (refused.status, refused.error["code"]) == (429, "insufficient_quota")
    assert f"needs up to ${cheap_micros / 1e6:.6f}" in refused.error["message"]
    assert asked == [0, 1]


async def test_a_key_is_refused_for_the_price_of_a_dear_account_that_may_be_asked(
    tmp_path: Path, store_url: str | None
) -> None:
    """The reservation holds its price: the purchase may fail over to it."""
    dear = {"price_factor": "3", "limits": {"usd_per_day": "1"}}
    async with open_house(tmp_path, store_url, {}, dear) as house:
        dry = await ask(house, "an otter", headers={"Prefer": "dry-run"})
        limit = dry.json["estimate_usd"] / 2
        bob = await house.gateway.client.with_key("bob", limits={"usd_per_day": round(limit, 6)})
        refused = await bob.ask("an otter", model=MODEL, quality="low", size="1024x1024")
        asked = await house.asked()
    assert (refused.status, refused.error["code"]) == (429, "insufficient_quota")
    assert f"needs up to ${dry.json['estimate_usd']:.6f}" in refused.error["message"]
    assert asked == [0, 0]


async def test_a_passed_over_account_is_not_in_the_reservation(
    tmp_path: Path, store_url: str | None
) -> None:
    spent = {"price_factor": "3", "limits": {"usd_per_day": "0.000001"}}
    async with open_house(tmp_path, store_url, spent, {"price_factor": "1"}) as house:
        dry = await ask(house, "an otter", headers={"Prefer": "dry-run"})
        async with house.second.hold():
            asking = asyncio.create_task(ask(house, "an otter"))
            await house.second.until_sent()
            reserved = await read_spent(house.gateway.settings, house.alice.key_id)
        bought = await asking
    assert bought.status == 200, bought.body
    assert reserved.reserved_micros == -(-round(dry.json["estimate_usd"] * 1e6) // 3)


# ── switches ────────────────────────────────────────────────────────────────────────────────


async def test_an_account_is_taken_out_of_service_on_every_gateway(
    tmp_path: Path, store_url: str | None
) -> None:
    async with (
        open_house(tmp_path, store_url) as house,
        run_gateway(house.gateway.settings) as other,
    ):
        admin = house.alice.admin
        off = await admin("PATCH", "/admin/upstream/first", {"enabled": False, "reason": "a test"})
        assert off.status == 200, off.body
        assert off.json["account"]["disabled"]["reason"] == "a test"
        assert (await ask(house, "an otter")).headers["x-gateway-upstream"] == "second"
        switches = other.gateway.services.upstream_switches
        await eventually(lambda: switches.is_disabled("first"))
        ready = await other.client.send("GET", "/readyz")
        assert [one["enabled"] for one in ready.json["upstreams"].values()] == [False, True]
        await admin("PATCH", "/admin/upstream/second", {"enabled": False})
        none = await ask(house, "a beaver")
        assert (none.status, none.error["code"]) == (503, "upstream_unavailable")
        assert MODEL in none.error["message"]
        assert (await ask(house, "an otter")).cache_status.startswith("hit")
        on = await admin("PATCH", "/admin/upstream/first", {"enabled": True})
        assert on.json["account"]["enabled"] is True
        assert (await ask(house, "a beaver")).headers["x-gateway-upstream"] == "first"
        assert await house.asked() == [1, 1]

        unknown = await admin("PATCH", "/admin/upstream/fist", {"enabled": False})
        assert (unknown.status, unknown.error["code"]) == (404, "upstream_not_found")
        assert "'first'" in unknown.error["message"]
        wrong = await admin("PATCH", "/admin/upstream/first", {"enabled": "no"})
        assert (wrong.status, wrong.error["param"]) == (400, "enabled")
        events = (await admin("GET", "/admin/audit")).json["data"]
        changes = [(e["action"], e["object"]) for e in events if e["action"].startswith("upstream")]
        assert changes == [
            ("upstream.enable", "upstream:first"),
            ("upstream.disable", "upstream:second"),
            ("upstream.disable", "upstream:first"),
        ]


# ── models and groups ───────────────────────────────────────────────────────────────────────


async def test_an_account_has_its_own_names_and_models_that_none_has_do_not_exist(
    tmp_path: Path,
) -> None:
    ours = {"models": {MODEL: None, "gpt-image-1.5": None, "dall-e-2": None}}
    theirs = {"models": {MODEL: "gpt-image-1.5"}}
    table = tmp_path / "models.yaml"
    table.write_text(SHIPPED.models.read_text())
    async with open_house(tmp_path, None, ours, theirs, policy=PolicyFile(table)) as house:
        await house.first.play("status=403")
        assert (await ask(house, "an otter")).status == 200
        sent = [(await one.bodies())[0]["model"] for one in house.upstreams]
        assert sent == [MODEL, "gpt-image-1.5"]
        (record,) = await house.gateway.ledger()
        assert (record.model, record.upstream_model) == (MODEL, "gpt-image-1.5")
        models = (await house.alice.send("GET", "/v1/models")).json["data"]
        assert {model["id"] for model in models} == {MODEL, "gpt-image-1.5", "dall-e-2"}
        unknown = await house.alice.ask("an otter", model="dall-e-3")
        assert unknown.status in (400, 404)
        assert "dall-e-3" in unknown.error["message"]

        # A default model that no account has gives way to the other one.
        table.write_text(
            table.read_text().replace("\ndefault_model: dall-e-2", "\ndefault_model: dall-e-3")
        )
        house.gateway.gateway.policy.reload()
        await house.second.forget()
        assert (await house.alice.ask("a heron", model=None)).status == 200
        assert [body["prompt"] for body in await house.second.bodies()] == ["a heron"]
        table.write_text(
            table.read_text().replace(
                "\ndefault_gpt_model: gpt-image-2", "\ndefault_gpt_model: gpt-image-1-mini"
            )
        )
        house.gateway.gateway.policy.reload()
        assert house.gateway.gateway.policy.fault is None
        unnamed = await house.alice.ask("a heron", model=None)
        assert (unnamed.status, unnamed.error["param"]) == (400, "model")


async def test_accounts_of_a_group_share_images_and_other_groups_do_not(tmp_path: Path) -> None:
    numbers = itertools.count()

    async def fingerprint_of(**given: Any) -> str:
        async with run_gateway(make_settings(tmp_path, "http://127.0.0.1:1/v1", **given)) as one:
            alice = await one.client.with_key(f"alice-{next(numbers)}")
            reply = await alice.ask("an otter", headers={"Cache-Control": "only-if-cached"})
            return reply.headers["Cache-Status"].partition("key=")[2].strip('"')

    url = {"base_url": "http://127.0.0.1:1/v1"}
    # As gateways with one upstream have always had it.
    canonical = (
        '{"cache_epoch":1,"model":"gpt-image-2","parameters":{"quality":"low",'
        '"size":"1024x1024"},"prompt":"an otter","scope":"global","upstream":"default",'
        '"version":1}'
    )
    today = hashlib.sha256(canonical.encode()).hexdigest()
    assert await fingerprint_of() == today
    assert await fingerprint_of(upstreams=[{"name": "a", **url}, {"name": "b", **url}]) == today
    assert await fingerprint_of(upstream={"name": "other"}) != today
    assert await fingerprint_of(upstream={"name": "other", "group": "default"}) == today
    assert await fingerprint_of(upstreams=[{"name": "a", "group": "azure", **url}]) != today


@pytest.mark.parametrize(
    ("accounts", "words"),
    [
        ([{"name": "a"}, {"name": "b", "group": "azure"}], ["group", "'default'", "'azure'"]),
        ([{"name": "a", "models": {"gpt-image-3": "x"}}], ["'gpt-image-3'", "models.yaml"]),
        ([{"name": "a", "weight": 0}], ["weight", "a"]),
    ],
)
async def test_accounts_that_cannot_be_routed_keep_the_gateway_from_starting(
    tmp_path: Path, accounts: Sequence[dict[str, Any]], words: list[str]
) -> None:
    listed = [{"base_url": "http://127.0.0.1:1/v1", **one} for one in accounts]
    settings = make_settings(tmp_path, "", upstreams=listed)
    with pytest.raises(ConfigError) as refused:
        async with run_gateway(settings):
            pass
    for word in words:
        assert word in str(refused.value)


def test_links_of_every_account_are_fetched_and_the_keys_of_all_are_secrets(tmp_path: Path) -> None:
    accounts = [
        {"name": "a", "base_url": "http://one.example:81/v1", "api_key": KEYS[0]},
        {"name": "b", "base_url": "https://two.example/v1", "api_key": KEYS[1]},
    ]
    settings = make_settings(tmp_path, "", upstreams=accounts)
    fetch = fetch_settings(settings)
    allowed = parse_allow_list(["one.example:81", "two.example:443"])
    assert fetch.allow_list == allowed
    assert set(KEYS) <= {*fetch.secrets}
    for client in client_settings(settings):
        assert set(KEYS) <= {*client.secrets}
        assert not any(key in repr(client) for key in KEYS)


async def test_doctor_examines_every_account(tmp_path: Path) -> None:
    with closed_port() as port:
        url = f"http://127.0.0.1:{port}/v1"
        accounts = [{"name": name, "base_url": url} for name in ("first", "second")]
        settings = make_settings(tmp_path, "", upstreams=accounts)
        found = await check_upstreams(settings)
    assert [finding.level for finding in found] == ["fault", "fault"]
    for name, finding in zip(("first", "second"), found, strict=True):
        assert finding.message.startswith(f"{name}: {url} does not respond")
        assert "check its base_url" in finding.message
