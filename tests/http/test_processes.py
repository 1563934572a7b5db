"""`gateway serve` with several workers, as in production: signals, `kill -9`, restarts."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest

from gateway.images import Record
from gateway.store.batch import execute
from gateway.store.commands import OpenJournals
from gateway.wiring.stores import open_store
from tests.gateways import (
    Client,
    Processes,
    Reply,
    Spent,
    Upstream,
    let_pass,
    open_connections,
    open_to_both,
    read_spent,
    run_processes,
)
from tests.journals import estimate, leave_purchase
from tests.redis_server import DurableRedis, run_durable_redis
from tests.stores import TOPOLOGIES, usually_on
from tests.waiting import eventually

CROWD = 100
QUICK = {"workers": {"heartbeat": "0.2s", "dead_after": "0.8s"}}


# ── 100 identical requests at once ──────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("store_url", "has_budget"),
    [
        pytest.param("sqlite", False, id="sqlite-unlimited"),
        pytest.param("redis", True, id="redis-budget-for-one"),
        pytest.param("sqlite", True, id="sqlite-budget-for-one", marks=pytest.mark.long),
        pytest.param("redis", False, id="redis-unlimited", marks=pytest.mark.long),
    ],
    indirect=["store_url"],
)
async def test_a_crowd_on_four_workers_buys_once(
    tmp_path: Path, upstream: Upstream, store_url: str | None, has_budget: bool
) -> None:
    """Also if the budget allows only one purchase."""
    prompt = "a crowd"
    async with run_processes(tmp_path, upstream.base_url, workers=4, redis_url=store_url) as (
        processes,
        client,
    ):
        alice = await client.with_key(limits=limits_for(prompt) if has_budget else {})
        async with crowd([(processes, alice)], CROWD) as connections:
            async with upstream.hold() as gate:
                asking = [asyncio.create_task(each.ask(prompt)) for each in connections]
                await gate.until(1)
                await let_pass(alice, workers=4)
            replies = await asyncio.gather(*asking)
            counted = [await each.metrics() for each in connections[:8]]
        await assert_bought_once(replies, await processes.records(CROWD), upstream)

        await eventually(lambda: sum(processes.answers_by_worker().values()) == CROWD)
        assert len(processes.answers_by_worker()) >= 3
        by_outcome = [answers_by_outcome(samples) for samples in counted]
        assert by_outcome == [{"bought": 1, "collapsed": CROWD - 1}] * len(counted)
        (record,) = [r for r in await processes.ledger() if r.outcome == "bought"]
        usd = sum(v for name, v in counted[0].items() if "cost_usd_total{" in name)
        assert usd == pytest.approx(record.cost_micros / 1e6)
        spent = await read_spent(processes.settings, alice.key_id)
        assert spent == Spent(record.cost_micros, 1, 0, 0)


@pytest.mark.parametrize("has_budget", [False, True], ids=["unlimited", "budget-for-one"])
async def test_a_crowd_over_two_gateways_buys_once(
    tmp_path: Path, upstream: Upstream, redis_url: str, has_budget: bool
) -> None:
    prompt = "two crowds"
    async with AsyncExitStack() as stack:
        started = [
            await stack.enter_async_context(
                run_processes(
                    tmp_path / name,
                    upstream.base_url,
                    workers=2,
                    redis_url=redis_url,
                    may_fork=may_fork,
                )
            )
            # One of them is a new interpreter, which has other hashes.
            for name, may_fork in (("here", True), ("there", False))
        ]
        (here, client), (there, other) = started
        alice = await client.with_key(limits=limits_for(prompt) if has_budget else {})
        also_alice = Client(other.url, other.session, alice.secret)
        both = [(here, alice), (there, also_alice)]
        connections = await stack.enter_async_context(crowd(both, CROWD))
        async with upstream.hold() as gate:
            asking = [asyncio.create_task(each.ask(prompt)) for each in connections]
            await gate.until(1)
            for each in (alice, also_alice):
                await let_pass(each, workers=2)
        replies = await asyncio.gather(*asking)
        await assert_bought_once(replies, await here.records(CROWD), upstream)

        for gateway in (here, there):
            await eventually(lambda g=gateway: sum(g.answers_by_worker().values()) == CROWD // 2)
        assert sum(len(gateway.answers_by_worker()) for gateway in (here, there)) >= 3


def limits_for(prompt: str) -> dict[str, float]:
    """A budget that allows exactly one purchase of this prompt."""
    return {"usd_per_month": estimate(prompt).usd_micros / 1e6}


@asynccontextmanager
async def crowd(
    gateways: Sequence[tuple[Processes, Client]], count: int
) -> AsyncIterator[list[Client]]:
    """Open connections, as many to each gateway, on at least three workers together."""
    for _ in range(10):
        async with AsyncExitStack() as stack:
            opened = []
            workers: set[int] = set()
            for processes, client in gateways:
                share = open_connections(client, count // len(gateways))
                connections = await stack.enter_async_context(share)
                checked = await asyncio.gather(*(c.send("GET", "/healthz") for c in connections))
                workers |= {await processes.worker_of(reply) for reply in checked}
                opened += connections
            if len(workers) >= 3:
                yield opened
                return
    raise AssertionError("fewer than three workers take connections")


async def assert_bought_once(
    replies: Sequence[Reply], records: Sequence[Record], upstream: Upstream
) -> None:
    assert {reply.status for reply in replies} == {200}
    assert len(replies) == CROWD
    assert len({tuple(reply.images) for reply in replies}) == 1
    assert len(await upstream.bodies()) == 1
    outcomes = [record.outcome for record in records]
    assert sorted(outcomes) == ["bought"] + ["collapsed"] * (CROWD - 1)
    assert sum(reply.headers["x-gateway-cost-usd"] != "0.000000" for reply in replies) == 1


def answers_by_outcome(samples: dict[str, float]) -> dict[str, int]:
    """Image requests in `/metrics`, by outcome."""
    counted: dict[str, int] = {}
    for name, value in samples.items():
        if name.startswith("gateway_requests_total{") and 'endpoint="generations"' in name:
            outcome = name.partition('outcome="')[2].partition('"')[0]
            counted[outcome] = counted.get(outcome, 0) + int(value)
    return counted


# ── clients that disconnect ─────────────────────────────────────────────────────────────────


@usually_on("redis", more=TOPOLOGIES)
async def test_a_purchase_is_stored_after_all_clients_have_disconnected(
    tmp_path: Path, upstream: Upstream, store_url: str | None
) -> None:
    prompt = "a lonely otter"
    async with run_processes(tmp_path, upstream.base_url, workers=2, redis_url=store_url) as (
        processes,
        client,
    ):
        alice = await client.with_key(limits={"images_per_day": 5})
        async with upstream.hold() as gate, open_connections(alice, 6) as connections:
            requests = [asyncio.create_task(each.ask(prompt)) for each in connections]
            await gate.until(1)
            await let_pass(alice, workers=2)
            for request in requests:
                request.cancel()
            await asyncio.gather(*requests, return_exceptions=True)
        assert len(await upstream.bodies()) == 1
        await until_bought(processes)

        late = await alice.ask(prompt)

        assert late.cache_status.startswith("hit")
        assert late.headers["x-ratelimit-remaining-images"] == "4"
        assert len(await upstream.bodies()) == 1
        bought = [r for r in await processes.ledger() if r.cost_micros]
        assert [r.outcome for r in bought] == ["bought"]
        spent = await read_spent(processes.settings, alice.key_id)
        assert spent == Spent(bought[0].cost_micros, 1, 0, 0)


async def until_bought(processes: Processes, count: int = 1) -> list[Record]:
    """The records of purchases, once there are `count` of them."""

    async def look() -> list[Record]:
        found = [r for r in await processes.ledger() if r.outcome in ("bought", "failed")]
        return found if len(found) >= count else []

    return await eventually(look)


# ── signals ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("workers", [1, 3])
async def test_open_requests_are_answered_after_the_first_signal(
    tmp_path: Path, upstream: Upstream, workers: int
) -> None:
    """During the drain `/readyz` answers 503, and every response closes its connection."""
    async with (
        run_processes(tmp_path, upstream.base_url, workers=workers) as (processes, client),
        aiohttp.ClientSession() as session,
    ):
        alice = await client.with_key()
        stranger = Client(client.url, session, alice.secret)

        async def are_draining() -> bool:
            """Each answer closes its connection, so the next one may be of another worker."""
            replies = [await stranger.send("GET", "/readyz") for _ in range(5 * workers)]
            return {reply.status for reply in replies} == {503}

        async with upstream.hold() as gate:
            asking = asyncio.create_task(alice.ask("a long one"))
            await gate.until(1)
            processes.signal_group(signal.SIGTERM)
            await eventually(are_draining)
            ready, refused = await stranger.send("GET", "/readyz"), await stranger.ask(prompt="")
        assert (ready.status, ready.json["status"]) == (503, "draining")
        assert ready.headers["Connection"] == refused.headers["Connection"] == "close"
        reply = await asking

        assert (reply.status, reply.cache_status) == (200, "fwd=miss; stored")
        assert reply.headers["Connection"] == "close"
        assert await processes.wait() == 0
        assert sorted(r.outcome for r in await processes.ledger()) == ["bought", "refused"]


async def test_a_purchase_without_clients_is_finished_before_the_exit(
    tmp_path: Path, upstream: Upstream
) -> None:
    async with run_processes(tmp_path, upstream.base_url, workers=2) as (processes, client):
        alice = await client.with_key()
        async with upstream.hold() as gate:
            asking = asyncio.create_task(alice.ask("nobody waits"))
            await gate.until(1)
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
            processes.signal_group(signal.SIGTERM)
            await asyncio.sleep(0.5)

        assert await processes.wait() == 0
        assert "bought" in [record.outcome for record in await processes.ledger()]
        spent = await read_spent(processes.settings, alice.key_id)
        assert (spent.images, spent.reserved_images) == (1, 0)


@pytest.mark.timed
@pytest.mark.parametrize(
    ("second", "workers"),
    [
        (signal.SIGTERM, 1),
        (signal.SIGINT, 3),
        pytest.param(signal.SIGTERM, 3, marks=pytest.mark.long),
        pytest.param(signal.SIGINT, 1, marks=pytest.mark.long),
    ],
)
async def test_the_second_signal_ends_the_gateway_at_once(
    tmp_path: Path, upstream: Upstream, second: signal.Signals, workers: int
) -> None:
    async with run_processes(tmp_path, upstream.base_url, workers=workers) as (processes, client):
        alice = await client.with_key()
        asking = asyncio.create_task(alice.ask("[[sim:slow=20]] too long"))
        await upstream.until_sent()
        processes.signal_group(signal.SIGTERM)
        await asyncio.sleep(0.2)
        assert processes.process.poll() is None

        started = time.monotonic()
        processes.signal_group(second)
        status = await processes.wait()

        assert time.monotonic() - started < 10  # the purchase takes twenty
        assert status == 128 + second
        with pytest.raises(aiohttp.ClientError):
            await asking
        with pytest.raises(ProcessLookupError):
            processes.signal_group(signal.SIGTERM)


@pytest.mark.timed
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_an_idle_gateway_exits_at_once(
    tmp_path: Path, upstream: Upstream, number: signal.Signals
) -> None:
    """If it has no connections. It writes the ledger first."""
    async with run_processes(tmp_path, upstream.base_url, workers=2) as (processes, client):
        alice = await client.with_key()
        async with open_connections(alice, 4) as connections:
            replies = await asyncio.gather(*(each.ask(prompt="") for each in connections))
            assert {reply.status for reply in replies} == {400}
        await client.session.close()
        started = time.monotonic()
        processes.signal_group(number)

        assert await processes.wait() == 0
        assert time.monotonic() - started < 4.5  # with idle connections it takes five
        records = await processes.ledger()
        assert {record.outcome for record in records} == {"refused"}
        assert sum(record.count or 1 for record in records) == 4


@pytest.mark.timed
@pytest.mark.long
async def test_idle_connections_delay_the_exit_by_five_seconds_at_most(
    tmp_path: Path, upstream: Upstream
) -> None:
    async with run_processes(tmp_path, upstream.base_url, workers=2) as (processes, client):
        async with open_connections(client, 6):
            started = time.monotonic()
            processes.signal_group(signal.SIGTERM)
            assert await processes.wait() == 0
        assert 4 < time.monotonic() - started < 8


@pytest.mark.long
async def test_an_open_request_is_answered_after_the_listener_is_closed(
    tmp_path: Path, upstream: Upstream
) -> None:
    """The listener closes after five seconds, the connection after the response."""
    async with run_processes(tmp_path, upstream.base_url, workers=2) as (processes, client):
        alice = await client.with_key()
        async with upstream.hold() as gate, aiohttp.ClientSession() as session:
            asking = asyncio.create_task(alice.ask("a very long one"))
            await gate.until(1)
            processes.signal_group(signal.SIGTERM)
            await asyncio.sleep(6)
            with pytest.raises(aiohttp.ClientConnectorError):
                await Client(client.url, session).send("GET", "/readyz")
        assert (await asking).status == 200
        assert await processes.wait() == 0


@pytest.mark.long
@pytest.mark.timed
async def test_the_last_accepted_connection_is_answered_after_the_listener_is_closed(
    tmp_path: Path, upstream: Upstream
) -> None:
    """Its request arrives after the listener has closed, which takes five seconds."""
    async with run_processes(tmp_path, upstream.base_url, workers=2) as (processes, client):
        host, port = client.url.removeprefix("http://").split(":")
        async with open_connections(client, 6):  # without one the listener closes at once
            processes.signal_group(signal.SIGTERM)
            await asyncio.sleep(4.7)
            reader, writer = await asyncio.open_connection(host, int(port))
            await asyncio.sleep(0.6)
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection(host, int(port))

            writer.write(b"GET /healthz HTTP/1.1\r\nHost: gateway\r\n\r\n")
            answer = await reader.read()
            writer.close()
        assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
        assert b"\r\nConnection: close\r\n" in answer
        assert await processes.wait() == 0


# ── kill -9 of everything ───────────────────────────────────────────────────────────────────


@dataclass
class LastingStore:
    """A store that several gateways use one after the other, and that can be killed."""

    folder: Path
    upstream: Upstream
    redis: DurableRedis | None
    has_served: bool = False

    @asynccontextmanager
    async def serve(self, **options: object) -> AsyncIterator[tuple[Processes, Client]]:
        """Runs a gateway on this store; a second one is a new interpreter, with other hashes."""
        may_fork, self.has_served = not self.has_served, True
        async with run_processes(
            self.folder,
            self.upstream.base_url,
            workers=2,
            redis_url=self.redis.url if self.redis else None,
            options=options,
            may_fork=may_fork,
        ) as started:
            yield started

    def kill_everything(self, processes: Processes) -> None:
        """Kills gateway and store, and restarts the store."""
        processes.kill_all()
        if self.redis is not None:
            self.redis.kill()
            self.redis.start_again()


@pytest.fixture(params=["sqlite", pytest.param("redis-aof", marks=pytest.mark.long)])
def lasting_store(
    request: pytest.FixtureRequest, tmp_path: Path, upstream: Upstream
) -> Iterator[LastingStore]:
    with ExitStack() as stack:
        server = None
        if request.param == "redis-aof":
            server = stack.enter_context(run_durable_redis(tmp_path))
        yield LastingStore(tmp_path / "gateway", upstream, server)


async def test_nothing_is_lost_if_an_idle_gateway_is_killed(
    lasting_store: LastingStore, upstream: Upstream
) -> None:
    async with lasting_store.serve() as (processes, client):
        alice = await client.with_key(limits={"images_per_day": 10, "usd_per_month": 5})
        bought = await alice.ask("an otter", n=2)
        assert (await alice.ask("an otter", n=2)).cache_status.startswith("hit")
        records = await processes.records(2)
        before = await read_spent(processes.settings, alice.key_id)
        lasting_store.kill_everything(processes)

    async with lasting_store.serve() as (processes, client):
        again = Client(client.url, client.session, alice.secret, alice.key_id)
        hit = await again.ask("an otter", n=2)
        assert hit.cache_status.startswith("hit")
        assert hit.images == bought.images
        assert hit.headers["x-ratelimit-remaining-images"] == "8"
        assert await read_spent(processes.settings, alice.key_id) == before
        assert (await processes.records(3))[:2] == records
        assert (await again.ask("another otter")).cache_status == "fwd=miss; stored"
        listed = await client.admin("GET", "/admin/keys")
        assert [key["name"] for key in listed.json["data"]] == ["alice"]
    assert len(await upstream.bodies()) == 2


@pytest.mark.timed
async def test_purchases_interrupted_by_a_kill_are_presumed_and_block_no_request(
    lasting_store: LastingStore, upstream: Upstream
) -> None:
    prompts = [f"[[sim:slow=20;times=1]] otter {i}" for i in range(3)]
    async with lasting_store.serve() as (processes, client):
        alice = await client.with_key()
        requests = [asyncio.create_task(alice.ask(prompt)) for prompt in prompts]
        await upstream.until_sent(3)
        lasting_store.kill_everything(processes)
        await asyncio.gather(*requests, return_exceptions=True)

    async with lasting_store.serve(**QUICK) as (processes, client):
        started = time.monotonic()
        again = Client(client.url, client.session, alice.secret, alice.key_id)
        failed = await until_bought(processes, 3)
        assert time.monotonic() - started < 6
        assert {r.outcome for r in failed} == {"failed"}
        assert {r.flags for r in failed} == {("presumed",)}
        estimates = [estimate(prompt).usd_micros for prompt in prompts]
        assert sorted(r.cost_micros for r in failed) == sorted(estimates)
        spent = await read_spent(processes.settings, alice.key_id)
        assert spent == Spent(sum(estimates), 3, 0, 0)
        replies = await asyncio.gather(*(again.ask(prompt) for prompt in prompts))
        assert [r.cache_status for r in replies] == ["fwd=miss; stored"] * 3
        assert len(await until_bought(processes, 6)) == 6


async def test_purchases_whose_image_was_received_are_stored_after_a_kill(
    lasting_store: LastingStore, upstream: Upstream
) -> None:
    async with lasting_store.serve() as (processes, client):
        alice = await client.with_key()
        left = await leave_purchase(processes.settings, alice.secret, "an otter", received=True)
        lasting_store.kill_everything(processes)

    async with lasting_store.serve(**QUICK) as (processes, client):
        (record,) = await until_bought(processes)
        again = Client(client.url, client.session, alice.secret, alice.key_id)
        hit = await again.ask("an otter")
        assert (record.id, record.outcome, record.flags) == (left.purchase, "bought", ())
        assert hit.cache_status.startswith("hit")
        assert record.cost_micros == left.charge.usd_micros
        spent = await read_spent(processes.settings, alice.key_id)
        assert spent == Spent(left.charge.usd_micros, 1, 0, 0)
        async with open_store(processes.settings) as (store, _):
            assert await execute(store, OpenJournals()) == []
    assert await upstream.bodies() == []


async def test_a_killed_worker_is_replaced_and_another_closes_its_purchase(
    tmp_path: Path, upstream: Upstream, store_url: str | None
) -> None:
    """A follower on the other worker buys instead."""
    prompt = "[[sim:slow=20;times=1]] an otter"
    async with run_processes(tmp_path, upstream.base_url, workers=2, redis_url=store_url) as (
        processes,
        client,
    ):
        alice = await client.with_key()
        async with open_to_both(processes, alice) as by_worker:
            (victim, leader), (_, follower) = by_worker.items()
            requests = [asyncio.create_task(leader.ask(prompt))]
            await upstream.until_sent()
            requests.append(asyncio.create_task(follower.ask(prompt)))
            await let_pass(alice, workers=2)
            os.kill(victim, signal.SIGKILL)
            await asyncio.wait(requests[:1])
            await processes.recover(victim)
            cut, followed = await asyncio.gather(*requests, return_exceptions=True)

        assert isinstance(cut, aiohttp.ClientError)
        assert isinstance(followed, Reply)
        assert (followed.status, followed.cache_status) == (200, "fwd=miss; stored")
        paid = [(r.outcome, r.flags) for r in await processes.ledger() if r.cost_micros]
        assert paid == [("failed", ("presumed",)), ("bought", ())]
        assert (await alice.ask(prompt)).cache_status.startswith("hit")


@pytest.mark.long
@pytest.mark.timed
async def test_repeated_requests_of_an_idempotency_key_are_answered_after_their_worker_is_killed(
    tmp_path: Path, upstream: Upstream, store_url: str | None
) -> None:
    """They get the failure that another worker records for the purchase: it may have been
    charged, so the key buys nothing more."""
    prompt, headers = "[[sim:slow=60;times=1]] an otter", {"Idempotency-Key": "order-17"}
    async with run_processes(
        tmp_path, upstream.base_url, workers=2, redis_url=store_url, options=QUICK
    ) as (processes, client):
        alice = await client.with_key()
        async with open_to_both(processes, alice) as by_worker:
            (victim, leader), (_, other) = by_worker.items()
            first = asyncio.create_task(leader.ask(prompt, headers=headers))
            await upstream.until_sent()
            repeating = [asyncio.create_task(other.ask(prompt, headers=headers)) for _ in range(2)]
            await asyncio.sleep(0.2)
            killed_at = time.monotonic()
            os.kill(victim, signal.SIGKILL)
            cut, *followed = await asyncio.gather(first, *repeating, return_exceptions=True)
            waited_seconds = time.monotonic() - killed_at
        later = await alice.ask(prompt, headers=headers)

        assert isinstance(cut, aiohttp.ClientError)
        replies = [reply for reply in (*followed, later) if isinstance(reply, Reply)]
        assert [reply.status for reply in replies] == [502] * 3
        assert all("worker died" in reply.error["message"] for reply in replies)
        assert later.headers["idempotent-replayed"] == "true"
        assert waited_seconds < 5
        paid = [(r.outcome, r.flags) for r in await processes.ledger() if r.cost_micros]
        assert paid == [("failed", ("presumed",))]
        assert len(await upstream.bodies()) == 1


# ── limits of the system ────────────────────────────────────────────────────────────────────


async def test_a_worker_raises_its_limit_of_open_files_to_the_hard_limit(tmp_path: Path) -> None:
    """500 open purchases would exceed the usual soft limit of 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, hard))
    try:
        async with run_processes(tmp_path, "http://127.0.0.1:1/v1", workers=1) as (processes, _):
            limits = [resource.prlimit(pid, resource.RLIMIT_NOFILE) for pid in processes.workers()]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert limits == [(hard, hard)]
