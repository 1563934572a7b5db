"""The circuit breaker over HTTP: failures that open it, requests that it rejects, its closing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.gateways import (
    Client,
    InProcess,
    Reply,
    Upstream,
    make_settings,
    open_to_both,
    read_spent,
    run_gateway,
    run_processes,
)
from tests.http.conftest import OpenGateway
from tests.ports import closed_port
from tests.stores import usual_store
from tests.waiting import DEADLINE_SECONDS, run_out_of_time

store_url = usual_store("redis")

OPEN_SECONDS = 10
MAX_RETRY_SECONDS = 120
"""SDKs do not wait longer."""
BREAKER_OPEN = 'gateway_upstream_breaker_open{upstream="default"}'


async def ask_each(client: Client, fault: str, count: int) -> list[Reply]:
    """Requests `count` different images in turn, each with the fault."""
    return [await client.ask(f"[[sim:{fault}]] image {i}") for i in range(count)]


def assert_rejected(reply: Reply, *, seconds: int = OPEN_SECONDS) -> None:
    """See `docs/reference/billing.md#retries-and-the-circuit-breaker`."""
    assert reply.status == 503, reply.body
    assert reply.error["code"] == "upstream_unavailable"
    assert reply.error["type"] == "server_error"
    assert reply.error["param"] is None
    assert reply.headers["x-gateway-error-source"] == "upstream"
    assert reply.headers["x-gateway-cost-usd"] == "0.000000"
    assert int(reply.headers["Retry-After"]) == seconds
    assert "x-should-retry" not in reply.headers


# ── failures that open it ───────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("fault", "status", "attempts"),
    [
        pytest.param("status=500", 500, 1, id="500"),
        pytest.param("status=502", 502, 1, id="an edge"),
        pytest.param("status=503;retry-after-ms=10", 503, 3, id="503 after its retries"),
        pytest.param("reset", 502, 1, id="reset"),
        pytest.param("hang", 504, 1, id="time-out"),
    ],
)
async def test_after_five_failures_the_sixth_request_is_rejected_without_being_sent(
    open_gateway: OpenGateway, upstream: Upstream, fault: str, status: int, attempts: int
) -> None:
    async with open_gateway(upstream={"timeout": f"{DEADLINE_SECONDS}s"}) as gateway:
        gateway.stop_time()
        alice = await gateway.client.with_key(limits={"usd_per_month": 50})
        if fault == "hang":
            failed = [await time_out(alice, upstream, i) for i in range(5)]
        else:
            failed = await ask_each(alice, fault, 5)
        spent = await read_spent(gateway.settings, alice.key_id)
        sixth = await alice.ask("an otter")
        records = await gateway.ledger()

        assert [reply.status for reply in failed] == [status] * 5
        assert_rejected(sixth)
        assert len(await upstream.bodies()) == 5 * attempts
        assert await read_spent(gateway.settings, alice.key_id) == spent
    (record,) = [r for r in records if r.error == "upstream_unavailable"]
    assert (record.outcome, record.status, record.flags) == ("failed", 503, ())
    assert (record.cost_micros, record.images, record.tokens) == (0, 0, {})


async def time_out(client: Client, upstream: Upstream, number: int) -> Reply:
    """A purchase, after `number` others, that times out once upstream has received it."""
    asking = client.ask(f"[[sim:hang]] image {number}")
    return await run_out_of_time(asking, once=lambda: upstream.has_received(number + 1))


async def test_an_unreachable_upstream_opens_it_too(tmp_path: Path, upstream: Upstream) -> None:
    with closed_port() as port:
        settings = make_settings(tmp_path, f"http://127.0.0.1:{port}/v1")
        async with run_gateway(settings) as gateway:
            gateway.stop_time()
            alice = await gateway.client.with_key(limits={"images_per_day": 6})
            failed = await asyncio.gather(*(alice.ask(f"image {i}") for i in range(5)))
            sixth = await alice.ask("an otter")

    assert {(reply.status, reply.error["code"]) for reply in failed} == {(502, "upstream_error")}
    assert_rejected(sixth)
    assert sixth.headers["x-ratelimit-remaining-images"] == "6"


async def test_followers_of_a_purchase_that_is_not_sent_are_rejected_too(
    embedded: InProcess, upstream: Upstream
) -> None:
    embedded.stop_time()
    alice = await embedded.client.with_key()
    await ask_each(alice, "status=500", 5)
    for reply in await asyncio.gather(*(alice.ask("an otter") for _ in range(4))):
        assert_rejected(reply)
    assert len(await upstream.bodies()) == 5


# ── responses that do not open it ───────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "response",
    [
        *("moderation", "status=404", "status=401", "429;code=insufficient_quota"),
        *("html", "bad-base64", "no-usage"),
    ],
)
async def test_any_response_resets_the_count_of_failures(
    embedded: InProcess, response: str
) -> None:
    alice = await embedded.client.with_key()
    await ask_each(alice, "status=500", 4)
    await alice.ask(f"[[sim:{response}]] something else")
    assert {reply.status for reply in await ask_each(alice, "status=500", 4)} == {500}
    assert (await alice.ask("an otter")).status == 200


@pytest.mark.parametrize("fault", ["moderation", "429;code=insufficient_quota", "bad-base64"])
async def test_bad_answers_do_not_open_it(embedded: InProcess, fault: str) -> None:
    alice = await embedded.client.with_key()
    await ask_each(alice, fault, 7)
    assert (await alice.ask("an otter")).status == 200


async def test_clients_that_disconnect_do_not_open_it(
    embedded: InProcess, upstream: Upstream
) -> None:
    alice = await embedded.client.with_key()
    async with upstream.hold() as gate:
        for i in range(6):
            asking = asyncio.create_task(alice.ask(f"image {i}"))
            await gate.until(i + 1)
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
    assert (await alice.ask("an otter")).status == 200
    assert len(await upstream.bodies()) == 7


async def test_zero_failures_switch_it_off(open_gateway: OpenGateway) -> None:
    async with open_gateway(upstream={"breaker": {"failures": 0}}) as gateway:
        alice = await gateway.client.with_key()
        assert {reply.status for reply in await ask_each(alice, "status=500", 12)} == {500}
        assert (await alice.ask("an otter")).status == 200


# ── open, half-open and closed again ────────────────────────────────────────────────────────


async def test_while_it_is_open_hits_are_served_and_invalid_requests_refused(
    embedded: InProcess, upstream: Upstream
) -> None:
    embedded.stop_time()
    alice = await embedded.client.with_key()
    await alice.ask("an otter")
    await ask_each(alice, "status=500", 5)
    hit, wrong = await alice.ask("an otter"), await alice.ask("an otter", size="1x1")

    assert (hit.status, wrong.status) == (200, 400)
    assert hit.cache_status.startswith("hit")
    assert len(await upstream.bodies()) == 6


async def test_half_open_one_purchase_probes_and_closes_it(
    open_gateway: OpenGateway, upstream: Upstream
) -> None:
    async with open_gateway() as gateway:
        clock = gateway.stop_time()
        alice = await gateway.client.with_key()
        await ask_each(alice, "status=500", 5)
        assert_rejected(await alice.ask("too early"))
        assert (await alice.metrics())[BREAKER_OPEN] == 1
        clock.now += OPEN_SECONDS
        await upstream.forget()

        async with upstream.hold() as gate:
            probe = asyncio.create_task(alice.ask("probe"))
            await gate.until(1)
            for reply in await asyncio.gather(*(alice.ask(f"others {i}") for i in range(3))):
                assert_rejected(reply)
        assert (await probe).status == 200
        assert len(await upstream.bodies()) == 1
        assert (await alice.metrics())[BREAKER_OPEN] == 0
        assert {(await alice.ask(f"others {i}")).status for i in range(3)} == {200}


async def test_a_failed_probe_reopens_it(open_gateway: OpenGateway, upstream: Upstream) -> None:
    async with open_gateway() as gateway:
        clock = gateway.stop_time()
        alice = await gateway.client.with_key()
        await ask_each(alice, "reset", 5)
        clock.now += OPEN_SECONDS
        probe = await alice.ask("[[sim:status=500]] probe")
        after = await alice.ask("an otter")

    assert probe.status == 500
    assert_rejected(after)
    assert len(await upstream.bodies()) == 6


async def test_a_probe_with_a_bad_answer_closes_it(open_gateway: OpenGateway) -> None:
    async with open_gateway() as gateway:
        clock = gateway.stop_time()
        alice = await gateway.client.with_key()
        await ask_each(alice, "status=500", 5)
        clock.now += OPEN_SECONDS
        assert (await alice.ask("[[sim:moderation]] probe")).status == 400
        assert (await alice.ask("an otter")).status == 200


# ── its scope ───────────────────────────────────────────────────────────────────────────────


async def test_each_gateway_has_a_breaker_of_its_own(open_gateway: OpenGateway) -> None:
    async with open_gateway() as here, open_gateway() as there:
        here.stop_time()
        alice = await here.client.with_key()
        elsewhere = Client(there.client.url, there.client.session, alice.secret)
        await ask_each(alice, "status=500", 5)
        assert_rejected(await alice.ask("an otter"))
        assert (await elsewhere.ask("an otter")).status == 200
        assert (await alice.ask("an otter")).cache_status.startswith("hit")


async def test_each_worker_has_a_breaker_of_its_own_and_the_metric_counts_the_open_ones(
    tmp_path: Path, upstream: Upstream
) -> None:
    async with two_workers(tmp_path, upstream) as (one, other):
        await ask_each(one, "status=500", 5)
        assert_rejected(await one.ask("an otter"), seconds=MAX_RETRY_SECONDS)
        assert (await other.ask("an otter")).status == 200
        assert [(await c.metrics())[BREAKER_OPEN] for c in (one, other)] == [1, 1]
        await ask_each(other, "reset", 5)
        assert_rejected(await other.ask("another otter"), seconds=MAX_RETRY_SECONDS)
        assert [(await c.metrics())[BREAKER_OPEN] for c in (one, other)] == [2, 2]


@asynccontextmanager
async def two_workers(folder: Path, upstream: Upstream) -> AsyncIterator[tuple[Client, Client]]:
    """A connection to each of two workers."""
    options = {"upstream": {"breaker": {"open": "1h"}}}
    async with run_processes(folder, upstream.base_url, workers=2, options=options) as (
        processes,
        client,
    ):
        alice = await client.with_key()
        async with open_to_both(processes, alice) as by_worker:
            one, other = by_worker.values()
            yield one, other
