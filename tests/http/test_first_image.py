"""The main job: an image is bought once, and then served from the cache."""

from __future__ import annotations

import asyncio
import base64
import gc
import json
from pathlib import Path

from gateway.proxy.context import RequestContext
from tests.gateways import (
    MODEL,
    Client,
    InProcess,
    Upstream,
    leases_at,
    make_settings,
    run_gateway,
)
from tests.http.conftest import OpenGateway


async def test_a_second_request_is_a_free_hit_with_the_same_bytes(
    alice: Client, gateway: InProcess, upstream: Upstream
) -> None:
    first, second = await alice.ask(), await alice.ask()

    assert (first.status, second.status) == (200, 200)
    assert first.cache_status == "fwd=miss; stored"
    assert second.cache_status.startswith("hit; ttl=")
    assert first.images == second.images
    assert base64.b64decode(first.images[0], validate=True).startswith(b"\x89PNG")
    assert len(await upstream.bodies()) == 1
    assert second.headers["x-gateway-cost-usd"] == "0.000000"
    assert second.headers["x-gateway-saved-usd"] == first.headers["x-gateway-cost-usd"]
    assert second.json["usage"] == first.json["usage"]
    bought, hit = await gateway.ledger()
    assert (bought.outcome, hit.outcome) == ("bought", "hit")
    assert bought.cost_micros == hit.saved_micros > 0
    assert (hit.cost_micros, hit.size, hit.quality) == (0, bought.size, bought.quality)


async def test_an_answered_request_is_freed_without_the_garbage_collector(alice: Client) -> None:
    await alice.ask()
    gc.collect()
    gc.disable()
    try:
        hits = [await alice.ask() for _ in range(3)]
        contexts = [found for found in gc.get_objects() if isinstance(found, RequestContext)]
    finally:
        gc.enable()

    assert all(hit.cache_status.startswith("hit") for hit in hits)
    assert contexts == []


async def test_a_request_for_more_images_buys_only_the_missing_ones(
    alice: Client, upstream: Upstream
) -> None:
    one = await alice.ask(n=1)
    four = await alice.ask(n=4)
    two = await alice.ask(n=2)

    assert [body.get("n", 1) for body in await upstream.bodies()] == [1, 3]
    assert four.images[:1] == one.images
    assert two.images == four.images[:2]
    assert four.cache_status == "fwd=partial; stored"
    assert two.cache_status.startswith("hit")


async def test_requests_for_two_and_four_images_at_once_buy_four(
    alice: Client, gateway: InProcess, upstream: Upstream
) -> None:
    leases = leases_at(gateway)
    async with upstream.hold():
        asking = [asyncio.create_task(alice.ask("a pond", n=n)) for n in (2, 4)]
        await leases.until(2)
    two, four = await asyncio.gather(*asking)

    assert sum(body.get("n", 1) for body in await upstream.bodies()) == 4
    assert (len(two.images), len(four.images)) == (2, 4)
    assert four.images[:2] == two.images
    assert sum(record.images for record in await gateway.ledger()) == 4


async def test_identical_requests_at_once_buy_once(
    alice: Client, gateway: InProcess, upstream: Upstream
) -> None:
    leases = leases_at(gateway)
    async with upstream.hold():
        asking = [asyncio.create_task(alice.ask("a lake")) for _ in range(20)]
        await leases.until(20)
    replies = await asyncio.gather(*asking)

    assert {reply.status for reply in replies} == {200}
    assert len({tuple(reply.images) for reply in replies}) == 1
    assert len(await upstream.bodies()) == 1
    outcomes = [record.outcome for record in await gateway.ledger()]
    assert sorted(outcomes) == ["bought"] + ["collapsed"] * 19


async def test_two_gateways_on_one_store_buy_once(
    open_gateway: OpenGateway, upstream: Upstream
) -> None:
    async with open_gateway() as here, open_gateway() as there:
        alice = await here.client.with_key("alice")
        bob = Client(there.client.url, there.client.session, alice.secret)
        leases = leases_at(here, there)
        async with upstream.hold():
            asking = [asyncio.create_task(client.ask("a sea")) for client in [alice, bob] * 10]
            await leases.until(20)
        replies = await asyncio.gather(*asking)
        outcomes = [record.outcome for record in await here.ledger() + await there.ledger()]

    assert {reply.status for reply in replies} == {200}
    assert len({tuple(reply.images) for reply in replies}) == 1
    assert len(await upstream.bodies()) == 1
    assert outcomes.count("bought") >= 1


async def test_a_purchase_goes_on_when_every_client_has_disconnected(
    alice: Client, gateway: InProcess, upstream: Upstream
) -> None:
    leases = leases_at(gateway)
    async with upstream.hold() as gate:
        asks = [asyncio.create_task(alice.ask("a lonely otter")) for _ in range(3)]
        await gate.until(1)
        await leases.until(3)
        for ask in asks:
            ask.cancel()
        await asyncio.gather(*asks, return_exceptions=True)
    await gateway.gateway.tasks.drain()

    late = await alice.ask("a lonely otter")

    assert late.cache_status.startswith("hit")
    assert len(await upstream.bodies()) == 1
    assert [r.outcome for r in await gateway.ledger()].count("bought") == 1


async def test_a_request_that_buys_twice_reports_the_sum_of_both_costs(
    alice: Client, gateway: InProcess, upstream: Upstream
) -> None:
    """The follower buys a slot that another key's purchase left empty."""
    bob = await gateway.client.with_key("bob")
    prompt, leases = "[[sim:fewer;times=1]] an otter", leases_at(gateway)
    async with upstream.hold() as gate:
        first = asyncio.create_task(alice.ask(prompt, n=2))
        await gate.until(1)
        asking = asyncio.create_task(bob.ask(prompt, n=3))
        await leases.until(2)
    await first
    second = await asking

    costs = [r.cost_micros for r in await gateway.ledger() if r.key == "bob" and r.cost_micros]
    assert len(second.images) == 3
    assert len(costs) == 2
    assert second.headers["x-gateway-cost-usd"] == f"{sum(costs) / 1e6:.6f}"


async def test_an_upstream_request_id_that_is_not_utf_8_is_stored_with_question_marks(
    tmp_path: Path, upstream: Upstream
) -> None:
    """A byte that is not UTF-8 would break the JSON of journal and ledger."""
    good = upstream.base_url

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        body = {"model": MODEL, "prompt": "an otter"}
        async with upstream.session.post(f"{good}/images/generations", json=body) as response:
            original = await response.json()
        answer = json.dumps(original).encode()
        head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(answer)}\r\nConnection: close\r\n"
        writer.write(head.encode() + b"x-request-id: req_\xff\r\n\r\n" + answer)
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(relay, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, run_gateway(make_settings(tmp_path, f"http://127.0.0.1:{port}/v1")) as here:
        alice = await here.client.with_key()
        first, second = await alice.ask(), await alice.ask()
        bought, _ = await here.ledger()

    assert (first.status, second.cache_status[:3]) == (200, "hit")
    assert (bought.outcome, bought.upstream_request_id) == ("bought", "req_?")
