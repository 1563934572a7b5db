"""A prompt is bought once although the store pauses, at any step and for any time.

The leader and one follower are in one gateway, another follower is in a second one. The gateway's
waits for the store, and the pauses, are scaled by `SCALE`.
"""

from __future__ import annotations

import asyncio
import fcntl
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from gateway.cache import flight_ends, flights
from gateway.errors import StoreUnavailable
from gateway.purchasing import lease, purchase, settlement
from gateway.store.batch import execute
from gateway.store.commands import AcquireLease, Inspect, ReadEntry, Receive, Reserve
from gateway.store.protocol import Command, Store
from gateway.store.redis import client as redis_client
from gateway.store.redis import replication
from gateway.store.redis.cluster import client as cluster_client
from gateway.store.redis.cluster import node as cluster_node
from gateway.store.sqlite import transaction_queue
from gateway.store.wrappers import EvictingStore
from gateway.wiring.stores import DATABASE
from tests.gateways import Client, InProcess, Reply, Upstream, make_settings, run_gateway
from tests.pausable_redis import run_pausable_redis
from tests.redis_server import DurableRedis, run_durable_redis, run_redis_server
from tests.stores import TOPOLOGIES, usually_on
from tests.waiting import eventually, generous

SCALE = 5
PAUSES = [(9,), pytest.param((1, 3, 20, 40), marks=pytest.mark.long)]
"""Seconds, before they are scaled."""
QUICK = {"heartbeat": f"{5 / SCALE}s", "dead_after": f"{15 / SCALE}s"}

SCALED = [
    (flight_ends, "RECHECK_SECONDS"),
    (flight_ends, "MAX_SILENCE_SECONDS"),
    (flights, "LEASE_SECONDS"),
    (flights, "HANDED_OVER_SECONDS"),
    (flights, "RELEASE_PAUSES"),
    (lease, "RETRY_SECONDS"),
    (lease, "CHECK_SECONDS"),
    (purchase, "COMMIT_WAIT_SECONDS"),
    (settlement, "RETRY_SECONDS"),
    (redis_client, "TIMEOUT_SECONDS"),
    (cluster_client, "TIMEOUT_SECONDS"),
    (cluster_node, "TIMEOUT_SECONDS"),
    (replication, "TIMEOUT_SECONDS"),
    (replication, "WAIT_SECONDS"),
    (replication, "GIVE_UP_SECONDS"),
    (transaction_queue, "TIMEOUT_SECONDS"),
]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scales the waits."""
    for module, name in SCALED:
        seconds = getattr(module, name)
        is_list = isinstance(seconds, tuple)
        scaled = tuple(s / SCALE for s in seconds) if is_list else seconds / SCALE
        monkeypatch.setattr(module, name, scaled)


@dataclass(frozen=True)
class Pair:
    """Two gateways on a store that a test can pause."""

    here: InProcess
    there: InProcess
    pause: Callable[[], None]
    go_on: Callable[[], None]

    async def until_back(self) -> None:
        """Returns once both gateways use the store again.

        Until then a request is answered as during the outage. On a busy machine, to connect again
        takes longer than a request waits here.
        """
        for gateway in (self.here, self.there):
            await eventually(lambda gateway=gateway: is_available(gateway))

    async def clients(self) -> tuple[Client, Client]:
        """One key at each of them, which both have seen."""
        alice = await self.here.client.with_key("alice")
        elsewhere = Client(self.there.client.url, alice.session, alice.secret, alice.key_id)
        for client in (alice, elsewhere):
            assert (await client.ask("seen")).status == 200
        return alice, elsewhere

    async def drain(self) -> None:
        async with generous():
            await asyncio.gather(*(g.gateway.tasks.drain() for g in (self.here, self.there)))


@pytest.fixture(params=["sqlite", "redis", *TOPOLOGIES])
async def pair(
    request: pytest.FixtureRequest, quick: None, tmp_path: Path, upstream: Upstream
) -> AsyncIterator[Pair]:
    async with AsyncExitStack() as stack:
        url = None
        if request.param != "sqlite":
            redis = stack.enter_context(run_pausable_redis(request.param, tmp_path))
            url, pause, go_on = redis.url, redis.freeze, redis.thaw
        here, there = [
            await stack.enter_async_context(
                run_gateway(make_settings(tmp_path / "data", upstream.base_url, url, workers=QUICK))
            )
            for _ in range(2)
        ]
        if url is None:
            lock = stack.enter_context((tmp_path / "data" / f"{DATABASE}-lock").open("w"))
            pause = lambda: fcntl.flock(lock, fcntl.LOCK_EX)  # noqa: E731
            go_on = lambda: fcntl.flock(lock, fcntl.LOCK_UN)  # noqa: E731
        yield Pair(here, there, pause, go_on)


async def is_available(gateway: InProcess) -> bool:
    """Whether all nodes answer."""
    try:
        await execute(gateway.gateway.store, Inspect())
    except StoreUnavailable:
        return False
    return True


@dataclass
class Stop:
    """A store that holds its first batch with `command`, before or after it was executed.

    `loses` its result: the gateway learns that the store is unavailable.
    """

    store: Store
    command: type[Command[Any]]
    after: bool = False
    loses: bool = False
    reached: asyncio.Event = field(default_factory=asyncio.Event)
    may_go_on: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.name, self.watch = self.store.name, self.store.watch

    async def execute(self, commands: Sequence[Command[Any]]) -> list[Any]:
        is_first = not self.reached.is_set()
        if not (is_first and any(isinstance(command, self.command) for command in commands)):
            return await self.store.execute(commands)
        results = await self.store.execute(commands) if self.after else []
        self.reached.set()
        await self.may_go_on.wait()
        if self.loses:
            raise StoreUnavailable
        return results if self.after else await self.store.execute(commands)


@contextmanager
def stopping(
    gateway: InProcess, command: type[Command[Any]], *, after: bool = False, loses: bool = False
) -> Iterator[Stop]:
    evicting = gateway.gateway.store
    assert isinstance(evicting, EvictingStore)
    before = evicting._store
    evicting._store = stop = Stop(before, command, after=after, loses=loses)
    try:
        yield stop
    finally:
        stop.may_go_on.set()
        evicting._store = before


STEPS: dict[str, tuple[type[Command[Any]], dict[str, bool]]] = {
    "leased, but the reply is lost": (AcquireLease, {"after": True, "loses": True}),
    "before it reserves": (Reserve, {}),
    "reserved, but the reply is lost": (Reserve, {"after": True, "loses": True}),
    "before it stores": (Receive, {}),
    "stored, but the reply is lost": (Receive, {"after": True, "loses": True}),
}


@pytest.mark.timed
@pytest.mark.timeout(180)
@usually_on("redis", "pair", more=TOPOLOGIES)
@pytest.mark.parametrize("pauses", PAUSES)
@pytest.mark.parametrize("step", STEPS)
async def test_a_pause_of_the_store_between_two_steps_of_a_purchase(
    pair: Pair, upstream: Upstream, step: str, pauses: tuple[int, ...]
) -> None:
    alice, elsewhere = await pair.clients()
    command, how = STEPS[step]

    async def buy(prompt: str, seconds: float) -> list[Reply]:
        with stopping(pair.here, command, **how) as stop:
            async with upstream.hold() as gate:
                asking = [asyncio.create_task(alice.ask(prompt))]
                if command is Receive:
                    await gate.until(1)
                else:
                    await stop.reached.wait()
                asking += [asyncio.create_task(c.ask(prompt)) for c in (alice, elsewhere)]
                await pair.there.until_leased(pair.there.leases.count + 1)
                if command is Receive:
                    gate.open()
                    await stop.reached.wait()
                pair.pause()
                stop.may_go_on.set()
                await asyncio.sleep(seconds / SCALE)
                pair.go_on()
                await asyncio.sleep(10 / SCALE)  # the purchase takes longer than the pause
            return await asyncio.gather(*asking)

    assert await calls_by_pause(pair, upstream, buy, pauses) == dict.fromkeys(pauses, 1)


@pytest.mark.timed
@pytest.mark.timeout(180)
@usually_on("redis", "pair", more=TOPOLOGIES)
@pytest.mark.parametrize("pauses", PAUSES)
async def test_a_pause_of_the_store_while_upstream_works(
    pair: Pair, upstream: Upstream, pauses: tuple[int, ...]
) -> None:
    """A request that comes when the store is back follows too."""
    alice, elsewhere = await pair.clients()

    async def buy(prompt: str, seconds: float) -> list[Reply]:
        async with upstream.hold() as gate:
            asking = [asyncio.create_task(alice.ask(prompt))]
            await gate.until(1)
            asking += [asyncio.create_task(c.ask(prompt)) for c in (alice, elsewhere)]
            await pair.there.until_leased(pair.there.leases.count + 1)
            await asyncio.sleep(10 / SCALE)
            pair.pause()
            await asyncio.sleep(seconds / SCALE)
            pair.go_on()
            await pair.until_back()
            asking += [asyncio.create_task(c.ask(prompt)) for c in (alice, elsewhere)]
            await asyncio.sleep(15 / SCALE)
        return await asyncio.gather(*asking)

    assert await calls_by_pause(pair, upstream, buy, pauses) == dict.fromkeys(pauses, 1)


async def calls_by_pause(
    pair: Pair,
    upstream: Upstream,
    buy: Callable[[str, float], Awaitable[list[Reply]]],
    pauses: tuple[int, ...],
) -> dict[int, int]:
    """How often upstream was called for one prompt, by the length of the store's pause."""
    calls = dict.fromkeys(pauses, 0)
    for seconds in pauses:
        prompt = f"{seconds} s"
        replies = await buy(prompt, seconds)
        await pair.drain()
        assert {reply.status for reply in replies} == {200}
        assert len({reply.images[0] for reply in replies}) == 1
        calls[seconds] = await sent(upstream, prompt)
    return calls


@dataclass(frozen=True)
class Lost:
    """A request that lost the store just when the purchase that it would follow was stored."""

    bought: Reply
    reply: Reply
    calls: int


async def lose_store(
    gateway: InProcess,
    upstream: Upstream,
    command: type[Command[Any]],
    *,
    meanwhile: Callable[[], Awaitable[object]] | None = None,
    **body: Any,
) -> Lost:
    """A second request gets no reply to `command`, and the first one's images are stored then."""
    alice = await gateway.client.with_key("alice")
    await alice.ask("seen")
    async with upstream.hold() as gate:
        buying = asyncio.create_task(alice.ask("an otter"))
        await gate.until(1)
        with stopping(gateway, command, after=True, loses=True) as stop:
            asking = asyncio.create_task(alice.ask("an otter", **body))
            await stop.reached.wait()
            gate.open()
            bought = await buying
            await gateway.gateway.tasks.drain()
            if meanwhile is not None:
                await meanwhile()
            stop.may_go_on.set()
            reply = await asking
    await gateway.gateway.tasks.drain()
    return Lost(bought, reply, await sent(upstream, "an otter"))


@pytest.mark.parametrize("command", [ReadEntry, AcquireLease])
async def test_a_follower_that_loses_the_store_when_its_images_are_stored_gets_them(
    gateway: InProcess, upstream: Upstream, command: type[Command[Any]]
) -> None:
    """The flight has ended and its images are stored, but this request cannot read the store."""
    lost = await lose_store(gateway, upstream, command)
    assert lost.reply.images == lost.bought.images
    assert lost.reply.cache_status.startswith("hit")
    assert lost.calls == 1


async def test_more_images_are_bought_beside_the_one_that_was_just_stored(
    embedded: InProcess, upstream: Upstream
) -> None:
    lost = await lose_store(embedded, upstream, AcquireLease, n=2)
    assert lost.reply.images[:1] == lost.bought.images
    bodies = [body for body in await upstream.bodies() if body["prompt"] == "an otter"]
    assert [body.get("n", 1) for body in bodies] == [1, 1]


@pytest.mark.parametrize("purge", ["fingerprint", "all", "takedown"])
async def test_a_purge_or_take_down_removes_the_images_that_were_just_stored(
    embedded: InProcess, upstream: Upstream, purge: str
) -> None:
    invalidation = embedded.gateway.cache.invalidation

    async def remove() -> None:
        (record,) = [r for r in await embedded.ledger() if r.images and r.outcome == "bought"][1:]
        fingerprint = record.fingerprint or ""
        if purge == "all":
            await invalidation.purge_all()
        elif purge == "fingerprint":
            await invalidation.purge_fingerprint(fingerprint)
        else:
            await invalidation.take_down(f"{fingerprint}/0")

    lost = await lose_store(embedded, upstream, ReadEntry, meanwhile=remove)
    assert lost.reply.images != lost.bought.images
    assert lost.calls == 2


@pytest.mark.timed
async def test_a_purchase_that_began_without_the_store_is_followed_once_it_is_back(
    pair: Pair, upstream: Upstream
) -> None:
    """By a request to another gateway too, and by one to this gateway for more images."""
    alice, elsewhere = await pair.clients()
    prompt = "an otter"
    async with upstream.hold() as gate:
        pair.pause()
        asking = [asyncio.create_task(alice.ask(prompt))]
        await gate.until(1)
        pair.go_on()
        await asyncio.sleep(20 / SCALE)
        asking += [
            asyncio.create_task(elsewhere.ask(prompt)),
            asyncio.create_task(alice.ask(prompt, n=2)),
        ]
        await gate.until(2)  # the second image
        await pair.there.until_leased(2)
    first, follower, both = await asyncio.gather(*asking)
    await pair.drain()

    assert first.images == follower.images == both.images[:1]
    assert [body.get("n", 1) for body in await upstream.bodies()][1:] == [1, 1]


def start_empty(server: DurableRedis) -> None:
    """Starts a server that was killed, without its data."""
    for folder in server.folder.glob("appendonly*"):
        shutil.rmtree(folder)
    server.start_again()


@pytest.mark.timed
async def test_a_redis_that_comes_back_empty_does_not_make_a_follower_buy(
    quick: None, tmp_path: Path, upstream: Upstream
) -> None:
    """The lease is lost, and nothing says so. The leader takes it again before a follower tries."""
    async with AsyncExitStack() as stack:
        server = stack.enter_context(run_durable_redis(tmp_path))
        here, there = [
            await stack.enter_async_context(
                run_gateway(
                    make_settings(tmp_path / "data", upstream.base_url, server.url, workers=QUICK)
                )
            )
            for _ in range(2)
        ]
        pair = Pair(here, there, server.freeze, server.thaw)
        alice, elsewhere = await pair.clients()
        async with upstream.hold() as gate:
            asking = [asyncio.create_task(alice.ask("an otter"))]
            await gate.until(1)
            asking.append(asyncio.create_task(elsewhere.ask("an otter")))
            await there.until_leased(there.leases.count + 1)
            await asyncio.sleep(3 / SCALE)  # the lease was renewed meanwhile
            server.kill()
            await asyncio.sleep(2 / SCALE)
            await asyncio.to_thread(start_empty, server)
            await asyncio.sleep(15 / SCALE)
        replies = await asyncio.gather(*asking)
        await pair.drain()

    assert len({reply.images[0] for reply in replies}) == 1
    assert await sent(upstream, "an otter") == 1


# ── the images' Redis alone ─────────────────────────────────────────────────────────────────


@pytest.mark.timed
async def test_images_that_cannot_be_stored_are_served_from_memory(
    quick: None, tmp_path: Path, upstream: Upstream
) -> None:
    """The images' Redis is away while that of the books is there."""
    async with AsyncExitStack() as stack:
        books = stack.enter_context(run_redis_server(tmp_path))
        images = stack.enter_context(run_durable_redis(tmp_path))
        here, there = [
            await stack.enter_async_context(
                run_gateway(
                    make_settings(
                        tmp_path / "data",
                        upstream.base_url,
                        books,
                        store={"blobs_url": images.url},
                        workers=QUICK,
                    )
                )
            )
            for _ in range(2)
        ]
        pair = Pair(here, there, images.freeze, images.thaw)
        alice, elsewhere = await pair.clients()
        limited = await here.client.with_key("limited", limits={"usd_per_day": 5})
        prompt = "an otter"
        images.freeze()
        bought = await limited.ask(prompt)
        again = [await alice.ask(prompt) for _ in range(3)]
        waiting = asyncio.create_task(elsewhere.ask(prompt))
        await there.until_leased(2)
        images.thaw()
        followed = await waiting
        await pair.drain()
        hit = await elsewhere.ask(prompt)

    assert bought.cache_status == "fwd=miss"
    assert {reply.cache_status.partition(";")[0] for reply in again} == {"hit"}
    assert {r.images[0] for r in (*again, followed, hit)} == {bought.images[0]}
    assert hit.cache_status.startswith("hit")
    assert await sent(upstream, prompt) == 1


async def sent(upstream: Upstream, prompt: str) -> int:
    """How often upstream received a prompt."""
    return sum(body["prompt"] == prompt for body in await upstream.bodies())
