"""Limits of a team and of everyone, and limits in shadow mode, over HTTP."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from gateway.errors import StoreUnavailable
from gateway.store.commands import Reserve
from tests.gateways import InProcess, Upstream
from tests.http.conftest import OpenGateway
from tests.http.test_refused_followers import LOW, crowd_at, records_of, without_reset
from tests.scope_limits import set_limits
from tests.stores import usual_store

store_url = usual_store("redis")

SCOPES = {"team:art": "team 'art'", "everyone": "everyone"}


@pytest.mark.parametrize("gateways", [1, 2])
@pytest.mark.parametrize("subject", SCOPES)
async def test_followers_of_a_refused_scope_are_refused_without_the_store(
    open_gateway: OpenGateway, subject: str, gateways: int
) -> None:
    async with crowd_at(open_gateway, gateways) as crowd:
        client = crowd.gateways[0].client
        await set_limits(client, subject, {"usd_per_day": 0.001})
        members = [await client.with_key(f"k{i}", team="art") for i in range(10)]
        replies = await crowd.ask(members * 4)
        records = await records_of(crowd)

    assert {reply.status for reply in replies} == {429}
    (message,) = {without_reset(reply) for reply in replies}
    assert message.startswith(f"Limit usd_per_day of {SCOPES[subject]} reached: limit $0.001000, ")
    assert crowd.count(Reserve) == 1
    assert Counter(key for key, _, count in records for _ in range(count)) == {
        f"k{i}": 4 for i in range(10)
    }


async def test_a_refused_team_does_not_refuse_followers_of_another(
    open_gateway: OpenGateway, upstream: Upstream
) -> None:
    async with crowd_at(open_gateway, 1) as crowd:
        client = crowd.gateways[0].client
        await set_limits(client, "team:art", {"usd_per_day": 0.001})
        art = [await client.with_key(f"art{i}", team="art") for i in range(3)]
        ads = [await client.with_key(f"ads{i}", team="ads") for i in range(3)]
        replies = await crowd.ask([*art, *ads])

    assert [reply.status for reply in replies] == [429] * 3 + [200] * 3
    assert len(await upstream.bodies()) == 1


async def test_requests_of_a_team_share_a_rate_and_the_headers_show_it(gateway: InProcess) -> None:
    await set_limits(gateway.client, "team:art", {"requests_per_minute": 3})
    alice = await gateway.client.with_key("alice", team="art", limits={"requests_per_minute": 9})
    bob = await gateway.client.with_key("bob", team="art")
    replies = [await client.ask("an otter", **LOW) for client in (alice, bob, alice, bob)]

    assert [reply.status for reply in replies] == [200, 200, 200, 429]
    remaining = [reply.headers["x-ratelimit-remaining-requests"] for reply in replies]
    assert remaining == ["2", "1", "0", "0"]
    refused = replies[-1].error
    assert refused["code"] == "rate_limit_exceeded"
    assert refused["message"].startswith("Limit requests_per_minute of team 'art' reached")
    assert "alice" not in refused["message"]


@pytest.mark.parametrize("subject", ["team:art", "everyone"])
async def test_open_purchases_of_all_keys_of_a_scope_count(
    gateway: InProcess, upstream: Upstream, subject: str
) -> None:
    await set_limits(gateway.client, subject, {"concurrent_requests": 1})
    alice = await gateway.client.with_key("alice", team="art")
    bob = await gateway.client.with_key("bob", team="art")
    async with upstream.hold() as gate:
        slow = asyncio.create_task(alice.ask("slow", **LOW))
        await gate.until(1)
        second = await bob.ask("another", **LOW)
    assert (await slow).status == 200
    assert second.status == 429
    assert f"concurrent_requests of {SCOPES[subject]}" in second.error["message"]
    assert (await bob.ask("another", **LOW)).status == 200


async def test_a_limit_in_shadow_mode_refuses_nothing_and_flags_what_it_would_refuse(
    gateway: InProcess,
) -> None:
    shadow = {
        "usd_per_day": {"max": 0.012, "mode": "shadow"},
        "requests_per_minute": {"max": 2, "mode": "shadow"},
    }
    await set_limits(gateway.client, "team:art", shadow)
    alice = await gateway.client.with_key("alice", team="art")
    replies = [await alice.ask(f"otter {i}", **LOW) for i in (0, 1, 1)]
    records = await gateway.ledger()
    samples = await gateway.client.metrics()

    assert [reply.status for reply in replies] == [200] * 3
    assert not any(name.startswith("x-ratelimit") for name in replies[-1].headers)
    # The second purchase is above the budget, and the hit is above the rate.
    flags = {(record.outcome, record.flags) for record in records}
    assert flags == {("bought", ()), ("bought", ("shadow_limit",)), ("hit", ("shadow_limit",))}
    name = 'gateway_shadow_refusals_total{{key="alice",reason="{}"}}'
    assert samples[name.format("usd_per_day")] == 1
    assert samples[name.format("requests_per_minute")] == 1


@pytest.mark.parametrize(("mode", "status"), [("enforce", 503), ("shadow", 200)])
@pytest.mark.parametrize("subject", ["team:art", "everyone"])
async def test_without_the_store_an_enforced_limit_of_any_scope_keeps_a_key_from_buying(
    embedded: InProcess,
    monkeypatch: pytest.MonkeyPatch,
    subject: str,
    mode: str,
    status: int,
) -> None:
    limit = {"max": 1000, "mode": mode}
    await set_limits(embedded.client, subject, {"usd_per_month": limit})
    alice = await embedded.client.with_key("alice", team="art")
    assert (await alice.ask("before", **LOW)).status == 200

    async def fail(commands: object) -> None:
        raise StoreUnavailable("The store is away.")

    with monkeypatch.context() as patch:
        patch.setattr(embedded.gateway.services.proxy._store, "execute", fail)
        reply = await alice.ask("during", **LOW)
    assert reply.status == status
