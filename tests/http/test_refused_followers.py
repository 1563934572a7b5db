"""Identical requests of a key that a limit refuses: the work grows only with their number.

All requests wait for one leader, whose reservation is held until they do.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Any

import aiohttp
import pytest

from gateway.store.commands import AcquireLease, ReadEvents, Reserve
from gateway.store.protocol import Command, Store
from tests.gateways import Client, InProcess, Reply, Upstream
from tests.http.conftest import OpenGateway
from tests.stores import usual_store
from tests.waiting import eventually, generous

store_url = usual_store("redis")

LOW = {"quality": "low", "size": "1024x1024"}
LOW_MICROS = 6_000 + 5 * (len("an otter") + 16)


class Watched:
    """A store that counts commands, and holds reservations until they may run.

    An `AcquireLease` counts once the store has executed it: a request whose lease is still on its
    way to the store would acquire that of a leader that was refused meanwhile.
    """

    def __init__(self, store: Store, may_reserve: asyncio.Event) -> None:
        self.name, self.kept = store.name, store.kept
        self.watch = store.watch
        self.counts: Counter[type] = Counter()
        self._store = store
        self._may_reserve = may_reserve

    async def execute(self, commands: Sequence[Command[Any]]) -> list[Any]:
        kinds = Counter(type(command) for command in commands)
        leases = Counter({AcquireLease: kinds.pop(AcquireLease, 0)})
        self.counts += kinds
        if Reserve in kinds:
            await self._may_reserve.wait()
        results = await self._store.execute(commands)
        self.counts += leases
        return results


class Crowd:
    """Gateways on one store, and requests that are sent to them in turn."""

    def __init__(self, gateways: Sequence[InProcess], session: aiohttp.ClientSession) -> None:
        self.gateways = gateways
        self._session = session
        self._may_reserve = asyncio.Event()
        self._watched = []
        for gateway in gateways:
            flights = gateway.gateway.flights
            watched = Watched(flights._store, self._may_reserve)
            flights._store = flights._ends._store = watched
            gateway.gateway.services.proxy._images._purchases._store = watched
            self._watched.append(watched)

    def count(self, *kinds: type) -> int:
        return sum(w.counts[kind] for w in self._watched for kind in kinds)

    @property
    def commands(self) -> int:
        """Those of flights and purchases, of all gateways."""
        return sum(watched.counts.total() for watched in self._watched)

    async def ask(self, clients: Iterable[Client], **body: Any) -> list[Reply]:
        """The answers to requests that all wait for the first before it is refused or buys."""
        first, *others = clients
        before = self.count(AcquireLease)
        asked = self.ask_soon([first], **body)
        if not before:  # otherwise all of them follow an earlier leader
            await eventually(lambda: self.count(Reserve) == 1)
        asked += self.ask_soon(others, **body)
        await eventually(lambda: self.count(AcquireLease) >= before + len(asked))
        self._may_reserve.set()
        async with generous():
            return await asyncio.gather(*asked)

    def let_reserve(self) -> None:
        self._may_reserve.set()

    def ask_soon(self, clients: Iterable[Client], **body: Any) -> list[asyncio.Task[Reply]]:
        asked = []
        for i, client in enumerate(clients):
            there = self.gateways[i % len(self.gateways)].client.url
            here = replace(client, url=there, session=self._session)
            asked.append(asyncio.create_task(here.ask(**{**LOW, **body})))
        return asked


@asynccontextmanager
async def crowd_at(open_gateway: OpenGateway, gateways: int) -> AsyncIterator[Crowd]:
    async with AsyncExitStack() as stack:
        opened = [await stack.enter_async_context(open_gateway()) for _ in range(gateways)]
        session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        yield Crowd(opened, await stack.enter_async_context(session))


async def records_of(crowd: Crowd) -> list[tuple[str, str, int]]:
    for gateway in crowd.gateways[1:]:
        await gateway.ledger()
    records = await crowd.gateways[0].ledger()
    return [(r.key, r.outcome, r.count or 1) for r in records]


def without_reset(reply: Reply) -> str:
    """Its message but for the time until the limit resets, which may pass a second meanwhile."""
    return reply.error["message"].partition(" It resets")[0]


@pytest.mark.parametrize("gateways", [1, 2])
async def test_followers_of_a_refused_key_are_refused_without_the_store(
    open_gateway: OpenGateway, upstream: Upstream, gateways: int
) -> None:
    async with crowd_at(open_gateway, gateways) as crowd:
        alice = await crowd.gateways[0].client.with_key("alice", limits={"usd_per_day": 0.001})
        replies = await crowd.ask([alice] * 60)
        records = await records_of(crowd)

    assert {reply.status for reply in replies} == {429}
    assert len({without_reset(reply) for reply in replies}) == 1
    assert replies[-1].error["code"] == "insufficient_quota"
    assert "usd_per_day of key 'alice' reached" in replies[-1].error["message"]
    assert f"needs up to ${LOW_MICROS / 1e6:.6f}." in replies[-1].error["message"]
    assert {reply.headers["x-should-retry"] for reply in replies} == {"false"}
    assert {reply.headers["x-gateway-cost-usd"] for reply in replies} == {"0.000000"}
    assert sum(count for _, _, count in records) == 60
    assert {(key, outcome) for key, outcome, _ in records} == {("alice", "refused")}
    assert await upstream.bodies() == []
    # One lease for each request, and what the leader and its readers in other gateways need.
    assert crowd.count(AcquireLease) == 60
    assert crowd.count(Reserve) == 1
    assert crowd.commands <= 3 * 60


@pytest.mark.parametrize(
    "limits",
    [
        {"usd_per_month": 0.001},
        {"tokens_per_day": 100},
        {"images_per_day": 0},
        {"images_per_minute": 0},
        {"concurrent_requests": 0},
    ],
    ids=lambda limits: next(iter(limits)),
)
async def test_followers_are_refused_by_any_limit(
    open_gateway: OpenGateway, limits: dict[str, float]
) -> None:
    async with crowd_at(open_gateway, 2) as crowd:
        alice = await crowd.gateways[0].client.with_key("alice", limits=limits)
        replies = await crowd.ask([alice] * 30)

    assert {reply.status for reply in replies} == {429}
    assert all(next(iter(limits)) in reply.error["message"] for reply in replies)
    assert len({without_reset(reply) for reply in replies}) == 1
    assert len({"Retry-After" in reply.headers for reply in replies}) == 1
    assert crowd.count(Reserve) == 1


@pytest.mark.parametrize("gateways", [1, 2])
async def test_a_refused_key_does_not_delay_the_purchase_of_another(
    open_gateway: OpenGateway, upstream: Upstream, gateways: int
) -> None:
    async with crowd_at(open_gateway, gateways) as crowd:
        client = crowd.gateways[0].client
        poor = await client.with_key("poor", limits={"usd_per_day": 0.001})
        rich = await client.with_key("rich", limits={"usd_per_day": 1})
        replies = await crowd.ask([poor] * 2 + [poor, poor, rich, rich] * 15)
        records = await records_of(crowd)

    of_poor = [r.status for i, r in enumerate(replies) if i < 2 or (i - 2) % 4 < 2]
    of_rich = [r.status for i, r in enumerate(replies) if i >= 2 and (i - 2) % 4 >= 2]
    assert of_rich == [200] * 30
    assert of_poor == [429] * 32
    assert len(await upstream.bodies()) == 1
    outcomes = Counter(outcome for key, outcome, _ in records if key == "rich")
    # One that tries once the image is stored is a hit.
    assert (outcomes["bought"], outcomes["collapsed"] + outcomes["hit"]) == (1, 29)
    assert crowd.count(Reserve) <= 3
    assert crowd.count(AcquireLease) <= 62 + 6 + outcomes["hit"]


@pytest.mark.parametrize("gateways", [1, 2])
async def test_every_key_over_its_budget_is_refused_once(
    open_gateway: OpenGateway, gateways: int
) -> None:
    """Forty keys, all of them over their budgets: each tries once, and none sends others to try."""
    async with crowd_at(open_gateway, gateways) as crowd:
        client = crowd.gateways[0].client
        keys = [await client.with_key(f"k{i}", limits={"images_per_day": 0}) for i in range(40)]
        replies = await crowd.ask(keys)

    assert {reply.status for reply in replies} == {429}
    assert [f"of key 'k{i}' " in r.error["message"] for i, r in enumerate(replies)] == [True] * 40
    assert crowd.count(Reserve) == 40
    assert crowd.count(AcquireLease) <= 40 + 40 * gateways
    assert crowd.count(ReadEvents) <= 3 * 40


async def test_a_smaller_request_of_a_refused_key_is_not_refused_with_a_larger_one(
    open_gateway: OpenGateway, upstream: Upstream
) -> None:
    async with crowd_at(open_gateway, 1) as crowd:
        alice = await crowd.gateways[0].client.with_key("alice", limits={"images_per_day": 2})
        large = crowd.ask_soon([alice], n=3)
        await eventually(lambda: crowd.count(Reserve) == 1)
        small = await crowd.ask([alice] * 3, n=2)
        (refused,) = await asyncio.gather(*large)

    assert refused.status == 429
    assert [reply.status for reply in small] == [200] * 3
    assert [body.get("n") for body in await upstream.bodies()] == [2]


async def test_a_larger_request_is_refused_with_its_own_amount(open_gateway: OpenGateway) -> None:
    async with crowd_at(open_gateway, 1) as crowd:
        alice = await crowd.gateways[0].client.with_key("alice", limits={"usd_per_day": 0.001})
        first = crowd.ask_soon([alice], stream=True)
        await eventually(lambda: crowd.count(Reserve) == 1)
        (second,) = await crowd.ask([alice], stream=True, partial_images=3)
        (refused,) = await asyncio.gather(*first)

    assert (refused.status, second.status) == (429, 429)
    assert f"needs up to ${LOW_MICROS / 1e6:.6f}." in refused.error["message"]
    assert f"needs up to ${(LOW_MICROS + 300 * 30) / 1e6:.6f}." in second.error["message"]
    assert crowd.count(Reserve) == 1


async def test_a_follower_above_its_own_max_cost_gets_that_error(open_gateway: OpenGateway) -> None:
    async with crowd_at(open_gateway, 1) as crowd:
        alice = await crowd.gateways[0].client.with_key("alice", limits={"usd_per_day": 0.001})
        first = crowd.ask_soon([alice])
        await eventually(lambda: crowd.count(Reserve) == 1)
        (second,) = await crowd.ask([alice], headers={"X-Gateway-Max-Cost-USD": "0.001"})
        (refused,) = await asyncio.gather(*first)

    assert (refused.status, second.status) == (429, 400)
    assert second.error["code"] == "max_cost_exceeded"


async def test_a_disconnected_follower_passes_its_turn_on(
    open_gateway: OpenGateway, upstream: Upstream
) -> None:
    async with crowd_at(open_gateway, 1) as crowd:
        client = crowd.gateways[0].client
        poor = await client.with_key("poor", limits={"images_per_day": 0})
        rich = await client.with_key("rich")
        leader = crowd.ask_soon([poor])
        await eventually(lambda: crowd.count(Reserve) == 1)
        leaving = crowd.ask_soon([rich] * 3)
        await eventually(lambda: crowd.count(AcquireLease) == 4)
        for task in leaving:
            task.cancel()
        (stayed,) = await crowd.ask([rich])
        await asyncio.gather(*leader)

    assert stayed.status == 200
    assert len(await upstream.bodies()) == 1


@pytest.mark.parametrize("gateways", [1, 2])
async def test_followers_that_stream_get_the_partial_images_of_the_next_leader(
    open_gateway: OpenGateway, gateways: int
) -> None:
    async with crowd_at(open_gateway, gateways) as crowd:
        client = crowd.gateways[0].client
        poor = await client.with_key("poor", limits={"usd_per_day": 0.001})
        rich = await client.with_key("rich")
        replies = await crowd.ask([poor, *[rich] * 6], stream=True, partial_images=2)

    assert replies[0].status == 429
    assert {reply.status for reply in replies[1:]} == {200}
    events = [reply.body.count(b"event: image_generation.partial_image") for reply in replies[1:]]
    assert events == [2] * 6
    assert all(b"event: image_generation.completed" in reply.body for reply in replies[1:])


@pytest.mark.parametrize("gateways", [1, 2])
async def test_requests_for_different_numbers_of_images_are_refused_in_proportion_too(
    open_gateway: OpenGateway, upstream: Upstream, gateways: int
) -> None:
    """Those for two follow one flight for the first image, and another for the second."""
    async with crowd_at(open_gateway, gateways) as crowd:
        alice = await crowd.gateways[0].client.with_key("alice", limits={"usd_per_day": 0.001})
        one = crowd.ask_soon([alice] * 20)
        await eventually(lambda: crowd.count(AcquireLease) == 20)
        two = await crowd.ask([alice] * 20, n=2)
        replies = [*two, *await asyncio.gather(*one)]

    assert {reply.status for reply in replies} == {429}
    assert await upstream.bodies() == []
    assert crowd.count(AcquireLease) <= 40 + 8
    assert crowd.count(Reserve) <= 6


@pytest.mark.parametrize("gateways", [1, 2])
async def test_many_keys_and_numbers_of_images_bring_everybody_an_answer(
    open_gateway: OpenGateway, upstream: Upstream, gateways: int
) -> None:
    async with crowd_at(open_gateway, gateways) as crowd:
        client = crowd.gateways[0].client
        keys = [await client.with_key(f"k{i}", limits={"images_per_day": i % 4}) for i in range(24)]
        first = crowd.ask_soon(keys[:1], n=3)
        await eventually(lambda: crowd.count(Reserve) == 1)
        asked = [
            task for i, key in enumerate(keys[1:]) for task in crowd.ask_soon([key], n=1 + i % 3)
        ]
        await eventually(lambda: crowd.count(AcquireLease) >= 24)
        crowd.let_reserve()
        async with generous():
            replies = await asyncio.gather(*first, *asked)

    assert {reply.status for reply in replies} <= {200, 429}
    # A key that may buy all that it asks for is never refused.
    for i, reply in enumerate(replies[1:]):
        if (i + 1) % 4 >= 1 + i % 3:
            assert reply.status == 200, i
    assert sum(body.get("n", 1) for body in await upstream.bodies()) == 3


@pytest.mark.timed
@pytest.mark.parametrize("gateways", [pytest.param(1, marks=pytest.mark.long), 2])
async def test_600_callers_without_a_budget_are_refused_within_seconds(
    open_gateway: OpenGateway, gateways: int
) -> None:
    loop = asyncio.get_running_loop()
    async with crowd_at(open_gateway, gateways) as crowd:
        client = crowd.gateways[0].client
        alice = await client.with_key("alice", limits={"usd_per_day": 0.001})
        bob = await client.with_key("bob", limits={"usd_per_day": 1})
        started = loop.time()
        replies = await crowd.ask([alice] * 300 + [bob] * 300)
        seconds = loop.time() - started

    assert Counter(reply.status for reply in replies) == {200: 300, 429: 300}
    assert crowd.commands <= 4 * 600
    assert seconds < 30
