"""The negative cache, and stale images if upstream fails."""

from __future__ import annotations

import asyncio
import base64
import re
import socket
from pathlib import Path

import pytest

from tests.gateways import (
    Client,
    InProcess,
    Reply,
    Upstream,
    leases_at,
    make_settings,
    run_gateway,
)
from tests.http.conftest import OpenGateway
from tests.http.hostile import PNG, run_hostile
from tests.stores import usual_store
from tests.waiting import DEADLINE_SECONDS, pass_time

store_url = usual_store("sqlite")

NO_CACHE = {"Cache-Control": "no-cache"}


async def ask_twice(client: Client, prompt: str, **body: object) -> list[Reply]:
    return [await client.ask(prompt, **body) for _ in range(2)]


# ── the negative cache ──────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("fault", "code"),
    [("moderation", "moderation_blocked"), ("content-policy", "content_policy_violation")],
)
async def test_a_refusal_of_the_content_is_cached_for_all_keys(
    gateway: InProcess, upstream: Upstream, fault: str, code: str
) -> None:
    """With upstream's whole error and at no cost. `no-cache` does not bypass it."""
    alice, bob = [await gateway.client.with_key(name) for name in ("alice", "bob")]
    prompt = f"[[sim:{fault};times=1]] an otter"
    first = await alice.ask(prompt)
    again = [
        await bob.ask(prompt),
        await alice.ask(prompt, headers=NO_CACHE),
        await bob.ask(prompt, headers={"Cache-Control": "max-age=1"}),
        await bob.ask(prompt, n=2, headers={"X-Gateway-Variation": "7"}),
        await bob.ask(prompt, stream=True),
    ]
    records = await gateway.ledger()

    assert len(await upstream.bodies()) == 1
    for reply in (first, *again):
        assert (reply.status, reply.error["code"]) == (400, code)
        assert reply.error == first.error
        assert reply.headers["x-gateway-error-source"] == "upstream"
        assert reply.headers["x-gateway-cost-usd"] == "0.000000"
    assert [record.cost_micros for record in records] == [0] * 3
    assert [(record.key, record.outcome, record.count) for record in records] == [
        ("alice", "failed", None),
        ("bob", "refused", 4),
        ("alice", "refused", 1),
    ]
    assert {record.error for record in records} == {code}


NOT_CACHED = [
    "moderation;stage=output",
    "status=400",
    "status=429;code=insufficient_quota",
    "status=500",
    "tiny-png",
    "html",
]


@pytest.mark.parametrize("fault", NOT_CACHED)
async def test_no_other_error_is_cached(
    embedded: InProcess, upstream: Upstream, fault: str
) -> None:
    """Nor is a refusal of the finished image, because the next image may pass."""
    alice = await embedded.client.with_key()
    failed, good = await ask_twice(alice, f"[[sim:{fault};times=1]] an otter")
    assert failed.status >= 400
    assert (good.status, good.cache_status) == (200, "fwd=miss; stored")


REFUSED = "Your request was rejected by the safety system. safety_violations=[sexual]."
WRAPPED = f"litellm.BadRequestError: OpenAIException - {REFUSED}"
RELAYED: list[tuple[str, str | None, str | None, int]] = [
    (REFUSED, "image_generation_user_error", "400", 1),
    (REFUSED, "invalid_request_error", None, 1),
    (WRAPPED, None, "400", 1),
    (REFUSED, "billing_limit_user_error", "400", 2),
    (f"Invalid prompt: '{REFUSED}'", "invalid_request_error", None, 2),
    ("You exceeded your current quota.", "invalid_request_error", "400", 2),
]


@pytest.mark.parametrize(("message", "type_", "code", "calls"), RELAYED)
async def test_a_refusal_that_another_gateway_relays_is_remembered_as_it_came(
    tmp_path: Path, message: str, type_: str | None, code: str | None, calls: int
) -> None:
    """And nothing else is."""
    error = {"message": message, "type": type_, "param": None, "code": code}
    async with run_hostile() as hostile:
        hostile.will_answer({"error": error}, 400)
        async with run_gateway(make_settings(tmp_path, hostile.base_url)) as gateway:
            first, again = await ask_twice(await gateway.client.with_key(), "an otter")
    assert (first.status, again.status) == (400, 400)
    for reply in (first, again):
        assert reply.error["message"].startswith(message)  # behind it may be whom to ask
        expected = error | {"type": type_ or "invalid_request_error"}
        assert reply.error | {"message": message} == expected
    assert len(hostile.bodies) == calls


@pytest.mark.parametrize("name", ["user", "safety_identifier", "X-Client-Request-Id"])
async def test_a_message_that_quotes_a_name_of_the_client_is_not_remembered(
    tmp_path: Path, name: str
) -> None:
    """It would have a good prompt refused to all keys."""
    error = {"message": f"BadRequestError: {REFUSED} is no user", "code": "400"}
    body = {"headers": {name: REFUSED}} if name.startswith("X-") else {name: REFUSED}
    async with run_hostile() as hostile:
        hostile.will_answer({"error": error}, 400)
        async with run_gateway(make_settings(tmp_path, hostile.base_url)) as gateway:
            refused = await (await gateway.client.with_key()).ask(**body)
            hostile.will_answer({"data": [{"b64_json": base64.b64encode(PNG).decode()}]})
            other = await (await gateway.client.with_key("bob")).ask()
    assert (refused.status, other.status) == (400, 200)


async def test_a_refusal_expires(open_gateway: OpenGateway, upstream: Upstream) -> None:
    async with open_gateway(cache={"refusal_ttl": "0.1s"}) as gateway:
        alice = await gateway.client.with_key()
        prompt = "[[sim:moderation;times=1]] an otter"
        refused = await alice.ask(prompt)
        await asyncio.sleep(0.2)
        good = await alice.ask(prompt)
    assert (refused.status, good.status) == (400, 200)
    assert len(await upstream.bodies()) == 2


async def test_a_refusal_is_shared_within_the_scope_of_images(
    gateway: InProcess, upstream: Upstream
) -> None:
    specs = {"art-1": "team", "art-2": "team", "own": "key"}
    clients = [
        await gateway.client.with_key(name, team="art", scope=scope)
        for name, scope in specs.items()
    ]
    prompt = "[[sim:moderation;times=1]] an otter"
    replies = [await client.ask(prompt) for client in clients]
    assert [reply.status for reply in replies] == [400, 400, 200]
    assert len(await upstream.bodies()) == 2


async def test_cached_images_are_served_although_their_prompt_is_refused_now(
    gateway: InProcess, upstream: Upstream
) -> None:
    alice = await gateway.client.with_key()
    bought = await alice.ask()
    await upstream.play("moderation")
    refused = await alice.ask(headers=NO_CACHE)
    hit = await alice.ask()
    assert (bought.status, refused.status, hit.status) == (200, 400, 200)
    assert hit.images == bought.images


async def test_the_refusal_of_a_request_with_no_store_is_not_cached(
    gateway: InProcess, upstream: Upstream
) -> None:
    alice = await gateway.client.with_key()
    prompt = "[[sim:moderation;times=1]] an otter"
    refused = await alice.ask(prompt, headers={"Cache-Control": "no-store"})
    good = await alice.ask(prompt)
    assert (refused.status, good.status) == (400, 200)


# ── stale-if-error ──────────────────────────────────────────────────────────────────────────

STALE = {"ttl": "0.1s", "stale_if_error": "10m"}
EXPIRED_SECONDS = 0.2
"""Longer than `ttl` and its jitter."""

FAILURES = {
    "status=500": "an error of the API",
    "status=502": "an edge",
    "status=503;retry-after-ms=10": "busy, after its retries",
    "status=504": "an edge's timeout",
    "hang": "the gateway's timeout",
    "reset": "cut off",
}
NO_FAILURES = ["status=400", "moderation", "status=429;retry-after=121", "status=403"]


def detail_of(reply: Reply) -> str:
    """Its Cache-Status, with N for every number of seconds."""
    return re.sub(r"\d+", "N", reply.cache_status)


@pytest.mark.parametrize("fault", FAILURES)
async def test_an_expired_image_is_served_if_upstream_fails(
    open_gateway: OpenGateway, upstream: Upstream, fault: str
) -> None:
    """To the leader, which pays for the failed purchase as usual, and to its followers."""
    timeout = {"timeout": f"{DEADLINE_SECONDS}s"}
    async with open_gateway(cache=STALE, upstream=timeout) as gateway:
        alice, bob = [await gateway.client.with_key(name) for name in ("alice", "bob")]
        fresh = await alice.ask(n=2)
        await asyncio.sleep(EXPIRED_SECONDS)
        await upstream.play(*[fault] * 3)
        leases = leases_at(gateway)
        async with upstream.hold() as gate:
            asking = [asyncio.create_task(client.ask(n=2)) for client in (alice, bob)]
            await gate.until(1)
            await leases.until(2)
            if fault == "hang":
                pass_time(DEADLINE_SECONDS)
        leader, follower = await asyncio.gather(*asking)
        await upstream.play()
        again = await alice.ask(n=2)
        _, *records = await gateway.ledger()

    for reply in (leader, follower):
        assert (reply.status, reply.images) == (200, fresh.images)
        assert detail_of(reply) == "hit; ttl=-N; detail=stale-if-error"
        assert float(reply.headers["x-gateway-saved-usd"]) > 0
    assert again.cache_status == "fwd=miss; stored"
    failed, hits = records[0], [r for r in records if r.outcome == "hit"]
    charged = {float(reply.headers["x-gateway-cost-usd"]) for reply in (leader, follower)}
    assert failed.outcome == "failed"
    assert charged == {0.0, failed.cost_micros / 1e6}
    assert (failed.cost_micros > 0) == (fault in ("status=502", "status=504", "hang", "reset"))
    assert [(hit.cost_micros, hit.saved_micros > 0) for hit in hits] == [(0, True)]


async def test_an_expired_image_is_served_while_the_breaker_is_open_or_upstream_unreachable(
    open_gateway: OpenGateway, upstream: Upstream
) -> None:
    async with open_gateway(cache=STALE, upstream={"breaker": {"failures": 1}}) as gateway:
        alice = await gateway.client.with_key()
        fresh = await alice.ask()
        await asyncio.sleep(EXPIRED_SECONDS)
        await upstream.play("status=500")
        opening = await alice.ask("another")
        calls = len(await upstream.bodies())
        blocked = await alice.ask()
        assert len(await upstream.bodies()) == calls

    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/v1"
        async with open_gateway(cache=STALE, upstream={"base_url": url}) as gateway:
            gateway.stop_time()
            alice = Client(gateway.client.url, gateway.client.session, alice.secret)
            unreachable, stream = await alice.ask(), await alice.ask(stream=True)

    assert opening.status == 500
    for reply in (blocked, unreachable):
        assert (reply.status, reply.images) == (200, fresh.images)
        assert detail_of(reply) == "hit; ttl=-N; detail=stale-if-error"
        assert reply.headers["x-gateway-cost-usd"] == "0.000000"
    assert stream.status == 200
    assert stream.body.count(b"event: image_generation.completed") == 1
    assert detail_of(stream) == "hit; ttl=-N; detail=stale-if-error"


@pytest.mark.parametrize("fault", NO_FAILURES)
async def test_a_refusal_of_upstream_is_relayed_although_there_is_an_expired_image(
    open_gateway: OpenGateway, upstream: Upstream, fault: str
) -> None:
    async with open_gateway(cache=STALE) as gateway:
        alice = await gateway.client.with_key()
        await alice.ask()
        await asyncio.sleep(EXPIRED_SECONDS)
        await upstream.play(fault)
        reply = await alice.ask()
    assert reply.status in (400, 429, 502)
    assert reply.error["code"] != "upstream_error"


async def test_a_refused_purchase_or_a_request_for_fresh_images_gets_no_expired_image(
    open_gateway: OpenGateway, upstream: Upstream
) -> None:
    async with open_gateway(cache=STALE) as gateway:
        alice = await gateway.client.with_key()
        poor = await gateway.client.with_key("poor", limits={"usd_per_day": 0})
        careful = await gateway.client.with_key("careful", reuse="within:1h")
        await alice.ask()
        await asyncio.sleep(EXPIRED_SECONDS)
        await upstream.play(*["status=500"] * 4)
        limited = await poor.ask()
        fresh = [
            await alice.ask(headers={"Cache-Control": directive})
            for directive in ("no-cache", "max-age=3600", "no-store")
        ]
        fresh.append(await careful.ask())
    assert (limited.status, limited.error["code"]) == (429, "insufficient_quota")
    assert [reply.status for reply in fresh] == [500] * 4


async def test_after_the_stale_if_error_window_an_expired_image_is_a_miss(
    open_gateway: OpenGateway, upstream: Upstream
) -> None:
    """The window counts for each image, also if other images extend the entry's lifetime."""
    brief = {"ttl": "0.1s", "stale_if_error": "0.1s"}
    async with open_gateway(cache=brief) as here, open_gateway() as there:
        alice = await here.client.with_key()
        lasting = Client(there.client.url, there.client.session, alice.secret)
        await alice.ask()
        await lasting.ask(headers={"X-Gateway-Variation": "1"})
        await asyncio.sleep(0.4)
        await upstream.play("status=500")
        too_old = await alice.ask()
        other = await alice.ask(headers={"X-Gateway-Variation": "1"})
    assert too_old.status == 500
    assert (other.status, detail_of(other)) == (200, "hit; ttl=N")


async def test_fresh_and_expired_images_are_served_together(
    open_gateway: OpenGateway, upstream: Upstream
) -> None:
    async with open_gateway(cache=STALE) as here, open_gateway() as there:
        alice = await here.client.with_key()
        lasting = Client(there.client.url, there.client.session, alice.secret)
        old = await alice.ask()
        await asyncio.sleep(EXPIRED_SECONDS)
        young = await lasting.ask(headers={"X-Gateway-Variation": "1"})
        await upstream.play("status=500")
        both = await alice.ask(n=2)
    assert both.images == [*old.images, *young.images]
    assert detail_of(both) == "hit; ttl=-N; detail=stale-if-error"
