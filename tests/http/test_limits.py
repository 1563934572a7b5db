"""Limits of a key's requests and spending, on one gateway and on several."""

from __future__ import annotations

import asyncio

import pytest

from gateway.billing.limit_headers import go_duration
from gateway.values import show_usd
from tests.gateways import Client, InProcess, Upstream, leases_at
from tests.http.conftest import OpenGateway

LOW = {"quality": "low", "size": "1024x1024"}
"""Estimated at $0.0105 for a short prompt: 272 + 30 tokens are less than the per-image price."""


async def test_two_gateways_share_a_rate_and_refuse_the_sixth_request(
    open_gateway: OpenGateway,
) -> None:
    async with open_gateway() as here, open_gateway() as there:
        alice = await here.client.with_key("alice", limits={"requests_per_minute": 5})
        elsewhere = Client(there.client.url, there.client.session, alice.secret)
        replies = await asyncio.gather(*(c.ask() for c in [alice, elsewhere] * 3))
        await here.ledger()
        records = await there.ledger()

    refused = [reply for reply in replies if reply.status == 429]
    assert [reply.status for reply in replies].count(200) == 5
    (sixth,) = refused
    assert sixth.error["code"] == "rate_limit_exceeded"
    assert sixth.error["type"] == "requests"
    assert "requests_per_minute of key 'alice'" in sixth.error["message"]
    assert 1 <= int(sixth.headers["Retry-After"]) <= 12
    assert 0 < int(sixth.headers["retry-after-ms"]) <= 12_000
    assert "x-should-retry" not in sixth.headers
    assert sixth.headers["x-ratelimit-limit-requests"] == "5"
    assert sixth.headers["x-ratelimit-remaining-requests"] == "0"
    assert sixth.headers["x-ratelimit-reset-requests"].endswith("s")
    assert sixth.headers["x-gateway-error-source"] == "gateway"
    assert sixth.headers["x-gateway-cost-usd"] == "0.000000"
    assert sorted(r.outcome for r in records) == ["bought", *["collapsed"] * 4, "refused"]


async def test_a_budget_is_never_exceeded_and_hits_still_work(
    gateway: InProcess, upstream: Upstream
) -> None:
    alice = await gateway.client.with_key("alice", limits={"usd_per_month": 0.05})
    first = await alice.ask("one", **LOW)
    expensive = await alice.ask("two", quality="high")
    vague = await alice.ask("three", quality=None)
    hit = await alice.ask("one", **LOW)

    assert (first.status, expensive.status, vague.status, hit.status) == (200, 429, 429, 200)
    assert hit.cache_status.startswith("hit")
    assert len(await upstream.bodies()) == 1
    assert expensive.error["code"] == expensive.error["type"] == "insufficient_quota"
    assert expensive.headers["x-should-retry"] == "false"
    assert "Retry-After" not in expensive.headers
    assert "usd_per_month of key 'alice'" in expensive.error["message"]
    assert f"used ${first.headers['x-gateway-cost-usd']}" in expensive.error["message"]
    assert "quality omitted: reserved as high" in vague.error["message"]


async def test_concurrent_purchases_never_exceed_a_budget_together(
    gateway: InProcess, upstream: Upstream
) -> None:
    alice = await gateway.client.with_key("alice", limits={"usd_per_month": 0.05})
    replies = await asyncio.gather(
        *(alice.ask(f"[[sim:slow=0.2]] image {i}", **LOW) for i in range(12))
    )

    bought = [reply for reply in replies if reply.status == 200]
    assert {reply.status for reply in replies} == {200, 429}
    assert len(bought) == len(await upstream.bodies()) <= 8
    spent = sum(record.cost_micros for record in await gateway.ledger())
    assert 0 < spent <= 50_000


async def test_images_per_day_counts_images_and_is_in_the_headers(gateway: InProcess) -> None:
    alice = await gateway.client.with_key("alice", limits={"images_per_day": 3})
    two = await alice.ask("one", n=2)
    hit = await alice.ask("one", n=2)
    too_many = await alice.ask("other", n=2)
    one = await alice.ask("third")

    assert (two.status, hit.status, too_many.status, one.status) == (200, 200, 429, 200)
    assert two.headers["x-ratelimit-limit-images"] == "3"
    assert two.headers["x-ratelimit-remaining-images"] == "1"
    assert hit.headers["x-ratelimit-remaining-images"] == "1"
    assert one.headers["x-ratelimit-remaining-images"] == "0"
    assert too_many.error["code"] == "insufficient_quota"
    assert (
        "h" in too_many.headers["x-ratelimit-reset-images"]
        or "m" in (too_many.headers["x-ratelimit-reset-images"])
    )


async def test_a_free_failure_cancels_the_whole_reservation(
    gateway: InProcess, upstream: Upstream
) -> None:
    alice = await gateway.client.with_key("alice", limits={"images_per_day": 1})
    failed = await alice.ask("[[sim:moderation]] something")
    good = await alice.ask("an otter")

    assert (failed.status, good.status) == (400, 200)
    assert failed.headers["x-ratelimit-remaining-images"] == "1"
    assert good.headers["x-ratelimit-remaining-images"] == "0"


@pytest.mark.parametrize(
    ("limit", "code"),
    [
        ("requests_per_minute", "rate_limit_exceeded"),
        ("images_per_minute", "rate_limit_exceeded"),
        ("concurrent_requests", "rate_limit_exceeded"),
        ("images_per_day", "insufficient_quota"),
        ("tokens_per_day", "insufficient_quota"),
        ("usd_per_day", "insufficient_quota"),
        ("usd_per_month", "insufficient_quota"),
    ],
)
async def test_a_limit_of_zero_allows_nothing_and_tells_the_client_not_to_retry(
    embedded: InProcess, upstream: Upstream, limit: str, code: str
) -> None:
    alice = await embedded.client.with_key("alice", limits={limit: 0})
    reply = await alice.ask()

    assert reply.status == 429
    assert reply.error["code"] == code
    assert reply.headers["x-should-retry"] == "false"
    assert "Retry-After" not in reply.headers
    has_advice = "The request exceeds the limit; retrying cannot help." in reply.error["message"]
    assert has_advice == (code == "rate_limit_exceeded")
    assert await upstream.bodies() == []


async def test_concurrent_requests_counts_open_purchases_only(
    gateway: InProcess, upstream: Upstream
) -> None:
    alice = await gateway.client.with_key("alice", limits={"concurrent_requests": 1})
    leases = leases_at(gateway)
    async with upstream.hold() as gate:
        slow = asyncio.create_task(alice.ask("slow"))
        await gate.until(1)
        follower = asyncio.create_task(alice.ask("slow"))
        await leases.until(2)
        second = await alice.ask("another")
    replies = [await slow, await follower, await alice.ask("another")]

    assert second.status == 429
    assert second.error["code"] == "rate_limit_exceeded"
    assert int(second.headers["Retry-After"]) >= 1
    assert [reply.status for reply in replies] == [200, 200, 200]


async def test_a_refused_leader_does_not_affect_other_keys(
    gateway: InProcess, upstream: Upstream
) -> None:
    poor = await gateway.client.with_key("poor", limits={"usd_per_month": 0})
    rich = await gateway.client.with_key("rich")
    replies = await asyncio.gather(
        *(c.ask("[[sim:slow=0.2]] shared", **LOW) for c in [poor, rich, poor, rich])
    )

    assert [reply.status for reply in replies[1::2]] == [200, 200]
    assert all(reply.status in (200, 429) for reply in replies[::2])
    assert len(await upstream.bodies()) == 1
    costs = {r.key: r.cost_micros for r in await gateway.ledger() if r.outcome == "bought"}
    assert list(costs) == ["rich"]


async def test_a_key_over_its_budget_never_blocks_another_key(
    open_gateway: OpenGateway, upstream: Upstream
) -> None:
    """Two keys send the same request at once, fifty times, to two gateways on one store."""
    async with open_gateway() as here, open_gateway() as there:
        poor = await here.client.with_key("poor", limits={"usd_per_month": 0})
        rich = await here.client.with_key("rich")
        elsewhere = Client(there.client.url, there.client.session, rich.secret)
        alone = await poor.ask("alone")
        before = len(await upstream.bodies())
        pairs = [
            await asyncio.gather(
                poor.ask(f"[[sim:slow=0.02]] {i}"), b.ask(f"[[sim:slow=0.02]] {i}")
            )
            for i, b in enumerate([rich, elsewhere] * 25)
        ]
        await here.ledger()
        records = await there.ledger()

    assert (alone.status, before) == (429, 0)
    assert [b.status for _, b in pairs] == [200] * 50
    for a, b in pairs:
        assert a.status in (200, 429)
        assert a.headers["x-gateway-cost-usd"] == "0.000000"
        assert a.status == 429 or a.images == b.images
    assert len(await upstream.bodies()) == 50
    assert {r.outcome for r in records if r.key == "poor"} <= {"refused", "collapsed", "hit"}
    assert sum(r.cost_micros for r in records if r.key == "poor") == 0


async def test_a_changed_limit_applies_from_the_next_request_on(
    open_gateway: OpenGateway,
) -> None:
    async with open_gateway() as here, open_gateway() as there:
        alice = await here.client.with_key("alice")
        elsewhere = Client(there.client.url, there.client.session, alice.secret)
        assert (await elsewhere.ask("one")).status == 200
        await here.client.admin(
            "PATCH", f"/admin/keys/{alice.key_id}", {"limits": {"usd_per_day": 0}}
        )
        refused = await elsewhere.ask("two")
        await here.client.admin(
            "PATCH", f"/admin/keys/{alice.key_id}", {"limits": {"usd_per_day": None}}
        )
        allowed = await elsewhere.ask("two")

    assert (refused.status, allowed.status) == (429, 200)


async def test_spending_before_a_limit_was_set_counts_against_it(gateway: InProcess) -> None:
    alice = await gateway.client.with_key("alice")
    await alice.ask("one", n=2)
    await gateway.client.admin(
        "PATCH", f"/admin/keys/{alice.key_id}", {"limits": {"images_per_day": 2}}
    )

    assert (await alice.ask("two")).status == 429


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0, "0s"),
        (0.12, "120ms"),
        (1, "1s"),
        (90, "1m30s"),
        (360, "6m0s"),
        (864, "14m24s"),
        (1252.666, "20m52.666s"),
        (58.891, "58.891s"),
        (3600, "1h0m0s"),
    ],
)
def test_durations_are_shown_as_go_shows_them(seconds: float, shown: str) -> None:
    """The examples of `docs/reference/images-api.md#headers-of-the-service`."""
    assert go_duration(seconds) == shown


@pytest.mark.parametrize(
    ("micros", "shown"), [(0, "0.000000"), (166_000, "0.166000"), (-1, "-0.000001")]
)
def test_money_is_shown_with_six_decimals(micros: int, shown: str) -> None:
    assert show_usd(micros) == shown


async def test_a_renamed_key_is_recorded_under_its_new_name_and_team(gateway: InProcess) -> None:
    """From the next request on, also by a worker with the old ones in memory."""
    alice = await gateway.client.with_key("alice", team="art")
    await alice.ask("an otter")
    requests = ({}, {"prompt": "another"}, {"quality": "ultra"})
    for number, request in enumerate(requests):
        changes = {"name": f"alice {number}", "team": f"team {number}"}
        await alice.admin("PATCH", f"/admin/keys/{alice.key_id}", changes)
        await alice.ask(**request)
    records = await gateway.ledger()

    assert {(r.outcome, r.key, r.team) for r in records if r.team != "art"} == {
        ("hit", "alice 0", "team 0"),
        ("bought", "alice 1", "team 1"),
        ("refused", "alice 2", "team 2"),
    }
