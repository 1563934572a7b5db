"""Purchases survive dead workers and short store outages: no image is lost or charged twice."""

from __future__ import annotations

import asyncio
import base64
import fcntl
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from gateway.errors import StoreFull, StoreUnavailable
from gateway.images import Record
from gateway.purchasing.purchase import RESERVED_LEASE_FACTOR
from gateway.store.batch import execute
from gateway.store.commands import (
    ExpiredWorkers,
    OpenJournals,
    Receive,
    ReleaseLease,
    RenewLease,
    Reserve,
    Settle,
)
from gateway.store.protocol import Command, Store
from gateway.store.wrappers import EvictingStore
from gateway.wiring.stores import DATABASE, open_store
from tests.catalogs import shipped_catalog
from tests.gateways import (
    Client,
    InProcess,
    Spent,
    Upstream,
    make_settings,
    read_spent,
    run_gateway,
)
from tests.http.conftest import OpenGateway
from tests.journals import PRICE_DATE, UPSTREAM, estimate, leave_purchase
from tests.pausable_redis import run_pausable_redis
from tests.stores import TOPOLOGIES
from tests.waiting import eventually, generous

QUICK = {"heartbeat": "0.1s", "dead_after": "0.3s"}
SLOW = {"heartbeat": "60s", "dead_after": "120s"}


def purchases_of(records: Sequence[Record]) -> list[Record]:
    """The records of purchases, of all keys."""
    return [record for record in records if record.outcome in ("bought", "partial", "failed")]


async def open_journals(gateway: InProcess) -> int:
    async with open_store(gateway.settings) as (store, _):
        return len(await execute(store, OpenJournals()))


async def spent(gateway: InProcess, client: Client) -> Spent:
    return await read_spent(gateway.settings, client.key_id)


async def until_purchases(gateway: InProcess, count: int) -> list[Record]:
    """The records of purchases, once there are `count`."""

    async def look() -> list[Record]:
        found = purchases_of(await gateway.ledger())
        return found if len(found) >= count else []

    return await eventually(look)


async def until_open(gateway: InProcess, count: int = 1) -> None:
    """Waits until `count` purchases have reserved."""

    async def look() -> bool:
        return await open_journals(gateway) >= count

    await eventually(look)


# ── dead workers ────────────────────────────────────────────────────────────────────────────


@pytest.fixture
async def slow_gateway(open_gateway: OpenGateway) -> AsyncIterator[InProcess]:
    """A gateway that recovers no purchase by itself during a test."""
    async with open_gateway(workers=SLOW) as opened:
        yield opened


async def test_an_image_that_a_dead_worker_received_is_stored_and_settled(
    slow_gateway: InProcess, upstream: Upstream
) -> None:
    alice = await slow_gateway.client.with_key()
    left = await leave_purchase(slow_gateway.settings, alice.secret, "an otter", received=True)
    assert (await spent(slow_gateway, alice)).reserved_micros == left.estimate.usd_micros

    assert await slow_gateway.recover_expired() == 1

    hit = await alice.ask("an otter")
    assert hit.cache_status.startswith("hit")
    assert base64.b64decode(hit.images[0]) == left.data
    assert await upstream.bodies() == []
    (record,) = purchases_of(await slow_gateway.ledger())
    assert (record.id, record.outcome, record.flags) == (left.purchase, "bought", ())
    assert record.cost_micros == left.charge.usd_micros
    assert await spent(slow_gateway, alice) == Spent(left.charge.usd_micros, 1, 0, 0)
    assert await open_journals(slow_gateway) == 0


async def test_a_purchase_that_a_dead_worker_only_reserved_is_presumed_at_the_estimate(
    slow_gateway: InProcess, upstream: Upstream
) -> None:
    alice = await slow_gateway.client.with_key()
    left = await leave_purchase(slow_gateway.settings, alice.secret, "an otter", received=False)

    assert await slow_gateway.recover_expired() == 1

    (record,) = purchases_of(await slow_gateway.ledger())
    assert (record.id, record.outcome, record.flags) == (left.purchase, "failed", ("presumed",))
    assert (record.status, record.error) == (502, "upstream_error")
    assert record.cost_micros == left.estimate.usd_micros
    assert record.costs == {"estimated": record.cost_micros}
    assert (record.upstream, record.price_date) == (UPSTREAM, PRICE_DATE)
    assert await spent(slow_gateway, alice) == Spent(left.estimate.usd_micros, 1, 0, 0)
    again = await alice.ask("an otter")
    assert again.cache_status == "fwd=miss; stored"
    assert len(await upstream.bodies()) == 1


async def test_followers_of_a_dead_leader_get_the_image_it_received_or_one_of_them_buys(
    slow_gateway: InProcess, upstream: Upstream
) -> None:
    alice = await slow_gateway.client.with_key("alice")
    for prompt, received in (("came", True), ("lost", False)):
        await leave_purchase(slow_gateway.settings, alice.secret, prompt, received=received)
    bob = await slow_gateway.client.with_key("bob")
    waiting = [asyncio.create_task(bob.ask(prompt)) for prompt in ("came", *["lost"] * 5)]
    await slow_gateway.until_leased(6)

    await slow_gateway.recover_expired()
    came, *lost = await asyncio.gather(*waiting)

    assert (came.status, came.cache_status) == (200, "fwd=miss; collapsed")
    assert {reply.status for reply in lost} == {200}
    assert len({tuple(reply.images) for reply in lost}) == 1
    assert [body["prompt"] for body in await upstream.bodies()] == ["lost"]
    paid = {(r.key, r.outcome) for r in await slow_gateway.ledger() if r.cost_micros}
    assert paid == {("alice", "bought"), ("alice", "failed"), ("bob", "bought")}


async def test_followers_get_an_error_if_the_replacing_leader_dies_too(
    slow_gateway: InProcess, upstream: Upstream
) -> None:
    alice = await slow_gateway.client.with_key()
    await leave_purchase(
        slow_gateway.settings, alice.secret, "lost", received=False, replacements=1
    )
    waiting = asyncio.create_task(alice.ask("lost"))
    await slow_gateway.until_leased(1)

    await slow_gateway.recover_expired()
    lost = await waiting

    assert (lost.status, lost.error["code"]) == (502, "upstream_error")
    assert lost.headers["x-should-retry"] == "false"
    assert lost.headers["x-gateway-cost-usd"] == "0.000000"
    assert await upstream.bodies() == []


async def test_a_follower_over_its_limit_gets_its_own_refusal_and_the_next_follower_buys(
    slow_gateway: InProcess, upstream: Upstream
) -> None:
    alice = await slow_gateway.client.with_key("alice")
    poor = await slow_gateway.client.with_key("poor", limits={"usd_per_day": 0})
    rich = await slow_gateway.client.with_key("rich")
    await leave_purchase(slow_gateway.settings, alice.secret, "lost", received=False)
    waiting = [asyncio.create_task(client.ask("lost")) for client in (poor, rich)]
    await slow_gateway.until_leased(2)

    await slow_gateway.recover_expired()
    poor_reply, rich_reply = await asyncio.gather(*waiting)

    assert rich_reply.status == 200
    assert poor_reply.status in (200, 429)
    assert len(await upstream.bodies()) == 1


async def test_a_follower_does_not_buy_with_a_key_that_was_changed_while_it_waited(
    slow_gateway: InProcess, upstream: Upstream
) -> None:
    """Long after its admission, a request may have to buy what it waited for."""
    client = slow_gateway.client
    names = ("alice", "revoked", "poor", "limited", "restricted")
    keys = [await client.with_key(name, team=name) for name in names]
    await leave_purchase(slow_gateway.settings, keys[0].secret, "lost", received=False)
    waiting = [asyncio.create_task(key.ask("lost")) for key in keys[1:]]
    await slow_gateway.until_leased(4)

    await client.admin("DELETE", f"/admin/keys/{keys[1].key_id}")
    limits = {"limits": {"usd_per_day": 0}}
    await client.admin("PATCH", f"/admin/keys/{keys[2].key_id}", limits)
    await client.admin("PATCH", "/admin/teams/limited", limits)
    await client.admin("PATCH", "/admin/teams/restricted", {"models": ["dall-e-3"]})
    await slow_gateway.recover_expired()

    assert [reply.status for reply in await asyncio.gather(*waiting)] == [401, 429, 429, 403]
    assert await upstream.bodies() == []


@pytest.mark.parametrize("received", [True, False], ids=["received", "reserved"])
async def test_concurrent_recoveries_close_a_purchase_once(
    open_gateway: OpenGateway, received: bool
) -> None:
    async with open_gateway(workers=SLOW) as here, open_gateway(workers=SLOW) as there:
        alice = await here.client.with_key()
        left = [
            await leave_purchase(here.settings, alice.secret, f"otter {i}", received=received)
            for i in range(5)
        ]

        await asyncio.gather(*(gateway.recover_expired() for gateway in (here, there) * 3))

        charges = [one.charge if received else one.estimate for one in left]
        records = purchases_of(await here.ledger())
        assert sorted(r.id for r in records) == sorted(one.purchase for one in left)
        total = sum(charge.usd_micros for charge in charges)
        assert sum(record.cost_micros for record in records) == total
        assert await spent(here, alice) == Spent(total, 5, 0, 0)
        counted = [(await g.client.metrics()).items() for g in (here, there)]
        usd = sum(v for sample in counted for k, v in sample if "cost_usd_total{" in k)
        assert usd == pytest.approx(total / 1e6)
        assert await here.recover_expired() == 0


async def test_a_dead_worker_is_deregistered_once_its_purchases_are_closed(
    slow_gateway: InProcess,
) -> None:
    alice = await slow_gateway.client.with_key()
    await leave_purchase(slow_gateway.settings, alice.secret, "an otter", received=False)
    async with open_store(slow_gateway.settings) as (store, _):
        assert "a-dead-worker" in await execute(store, ExpiredWorkers(0))
        await slow_gateway.recover_expired()
        assert "a-dead-worker" not in await execute(store, ExpiredWorkers(0))


async def test_an_unreadable_journal_does_not_block_the_others(slow_gateway: InProcess) -> None:
    alice = await slow_gateway.client.with_key()
    async with open_store(slow_gateway.settings) as (store, _):
        await execute(store, Reserve("of-another-time", "a-dead-worker", (), b"\x00not ours"))
    for worker in ("a-dead-worker", "b-dead-worker"):
        await leave_purchase(
            slow_gateway.settings, alice.secret, worker, received=False, worker=worker
        )

    assert await slow_gateway.recover_expired() == 3

    assert await open_journals(slow_gateway) == 0
    assert len(purchases_of(await slow_gateway.ledger())) == 3


async def test_a_gateway_recovers_dead_workers_by_itself(open_gateway: OpenGateway) -> None:
    async with open_gateway(workers=QUICK) as gateway:
        alice = await gateway.client.with_key()
        left = await leave_purchase(gateway.settings, alice.secret, "an otter", received=True)
        (record,) = await until_purchases(gateway, 1)
        assert record.id == left.purchase


# ── answers that arrive after the purchase was presumed ─────────────────────────────────────


async def test_a_late_answer_corrects_the_presumed_charge(
    open_gateway: OpenGateway, upstream: Upstream
) -> None:
    prompt = "a late otter"
    async with open_gateway(workers=SLOW) as presumed_dead:
        alice = await presumed_dead.client.with_key()
        async with open_gateway(workers=QUICK) as recoverer:
            async with upstream.hold():
                asking = asyncio.create_task(alice.ask(prompt))
                (presumed,) = await until_purchases(recoverer, 1)
                assert (presumed.outcome, presumed.flags) == ("failed", ("presumed",))
                charged = await spent(recoverer, alice)
                assert charged == Spent(estimate(prompt).usd_micros, 1, 0, 0)
            reply = await asking
            await presumed_dead.gateway.tasks.drain()
            first, late = await until_purchases(recoverer, 2)
            hit = await Client(recoverer.client.url, alice.session, alice.secret).ask(prompt)

        assert reply.status == 200
        assert hit.cache_status.startswith("hit")
        assert hit.images == reply.images
        assert (first.id, late.corrects, late.outcome) == (presumed.id, presumed.id, "bought")
        assert late.id != first.id
        assert "late" in late.flags
        real = int(reply.headers["x-gateway-cost-usd"].replace(".", ""))
        assert 0 < real < first.cost_micros
        assert first.cost_micros + late.cost_micros == real
        assert first.images + late.images == 1
        # By kind too: what came, less what was presumed.
        assert first.costs == {"estimated": first.cost_micros}
        assert late.costs == {**late.costs, "estimated": -first.cost_micros}
        assert sum(late.costs.values()) == late.cost_micros
        assert {"text_in", "image_out"} < set(late.costs)
        assert (first.price_date, first.upstream) == (late.price_date, late.upstream)
        assert late.upstream == "default"
        assert late.price_date == shipped_catalog().prices_as_of.isoformat()
        assert late.presumed_micros == -presumed.cost_micros
        assert await spent(presumed_dead, alice) == Spent(real, 1, 0, 0)
        assert len(await upstream.bodies()) == 1


async def test_a_late_refusal_corrects_the_presumed_charge_to_zero(
    open_gateway: OpenGateway, upstream: Upstream
) -> None:
    prompt = "[[sim:moderation]] a late refusal"
    async with open_gateway(workers=SLOW) as presumed_dead:
        alice = await presumed_dead.client.with_key()
        async with open_gateway(workers=QUICK) as recoverer:
            async with upstream.hold():
                asking = asyncio.create_task(alice.ask(prompt))
                (presumed,) = await until_purchases(recoverer, 1)
            reply = await asking
            first, late = await until_purchases(recoverer, 2)

        assert (reply.status, reply.error["code"]) == (400, "moderation_blocked")
        assert (first.id, late.corrects, late.outcome) == (presumed.id, presumed.id, "failed")
        assert first.cost_micros + late.cost_micros == first.images + late.images == 0
        assert late.costs == {"estimated": -first.cost_micros}
        assert await spent(presumed_dead, alice) == Spent(0, 0, 0, 0)


# ── a store that is briefly unavailable ─────────────────────────────────────────────────────


@dataclass(frozen=True)
class Pausable:
    """A gateway whose store a test can pause."""

    gateway: InProcess
    freeze: Callable[[], None]
    thaw: Callable[[], None]


@pytest.fixture(params=["sqlite", "redis", *TOPOLOGIES])
async def pausable(
    request: pytest.FixtureRequest, tmp_path: Path, upstream: Upstream
) -> AsyncIterator[Pausable]:
    if request.param == "sqlite":
        opened = pausable_sqlite(tmp_path, upstream)
    else:
        opened = pausable_redis(request.param, tmp_path, upstream)
    async with opened as gateway:
        yield gateway


@asynccontextmanager
async def pausable_redis(
    topology: str, folder: Path, upstream: Upstream
) -> AsyncIterator[Pausable]:
    with run_pausable_redis(topology, folder) as servers:
        settings = make_settings(folder / "data", upstream.base_url, servers.url)
        async with run_gateway(settings) as gateway:
            yield Pausable(gateway, servers.freeze, servers.thaw)


@asynccontextmanager
async def pausable_sqlite(folder: Path, upstream: Upstream) -> AsyncIterator[Pausable]:
    """Holds the writers' lock, as another process could."""
    settings = make_settings(folder / "data", upstream.base_url)
    async with run_gateway(settings) as gateway:
        with (folder / "data" / f"{DATABASE}-lock").open("w") as lock:
            yield Pausable(
                gateway,
                lambda: fcntl.flock(lock, fcntl.LOCK_EX),
                lambda: fcntl.flock(lock, fcntl.LOCK_UN),
            )


async def test_clients_get_their_image_while_the_store_is_unavailable(
    pausable: Pausable, upstream: Upstream
) -> None:
    """From memory. The image is stored and settled once when the store is back."""
    prompt, gateway = "a blink", pausable.gateway
    alice = await gateway.client.with_key()
    async with upstream.hold() as gate:
        asking = [asyncio.create_task(alice.ask(prompt)) for _ in range(3)]
        await gate.until(1)
        await gateway.until_leased(3)
        pausable.freeze()
    try:
        replies = await asyncio.gather(*asking)
        assert len(gateway.gateway.tasks) == 1  # stores the image
    finally:
        pausable.thaw()
    async with generous():
        await gateway.gateway.tasks.drain()

    assert {reply.status for reply in replies} == {200}
    assert len({tuple(reply.images) for reply in replies}) == 1
    hit = await alice.ask(prompt)
    assert hit.cache_status.startswith("hit")
    assert hit.images == replies[0].images
    (record,) = purchases_of(await gateway.ledger())
    assert record.flags == ()
    assert await spent(gateway, alice) == Spent(record.cost_micros, 1, 0, 0)
    assert await open_journals(gateway) == 0
    assert await cost_usd(gateway) == pytest.approx(record.cost_micros / 1e6)
    assert len(await upstream.bodies()) == 1


async def test_a_failure_is_settled_when_the_store_is_back(
    pausable: Pausable, upstream: Upstream
) -> None:
    gateway = pausable.gateway
    alice = await gateway.client.with_key()
    async with upstream.hold() as gate:
        asking = asyncio.create_task(alice.ask("[[sim:tiny-png]] a blink"))
        await gate.until(1)
        pausable.freeze()
    try:
        reply = await asking
    finally:
        pausable.thaw()
    async with generous():
        await gateway.gateway.tasks.drain()

    assert (reply.status, reply.error["code"]) == (502, "upstream_error")
    (record,) = purchases_of(await gateway.ledger())
    assert record.flags == ("undelivered",)
    assert await spent(gateway, alice) == Spent(record.cost_micros, 1, 0, 0)


async def cost_usd(gateway: InProcess) -> float:
    metrics = await gateway.client.metrics()
    return sum(value for name, value in metrics.items() if "cost_usd_total{" in name)


class LosesResult:
    """A store that executes the first `command`, but loses its result."""

    def __init__(
        self, store: Store, command: type[Command[Any]], *, error: type[StoreUnavailable]
    ) -> None:
        self.name, self.kept = store.name, store.kept
        self.watch = store.watch
        self._store = store
        self._command: type[Command[Any]] | None = command
        self._error = error

    async def execute(self, commands: Sequence[Command[Any]]) -> list[Any]:
        results = await self._store.execute(commands)
        if self._command is not None and any(
            isinstance(command, self._command) for command in commands
        ):
            self._command = None
            raise self._error
        return results


@pytest.fixture
async def limited(gateway: InProcess) -> Client:
    """A key with a limit, which buys only if the store confirms its reservation."""
    return await gateway.client.with_key("alice", limits={"images_per_day": 10})


async def test_a_reservation_without_a_result_is_cancelled(
    gateway: InProcess, limited: Client, upstream: Upstream
) -> None:
    """Nothing was sent, so nothing stays reserved, and the slots are free."""
    purchases = gateway.gateway.services.proxy._images._purchases
    purchases._store = LosesResult(purchases._store, Reserve, error=StoreUnavailable)

    refused = await limited.ask()
    await gateway.gateway.tasks.drain()

    assert (refused.status, refused.error["code"]) == (503, "store_unavailable")
    assert await upstream.bodies() == []
    assert await open_journals(gateway) == 0
    assert await spent(gateway, limited) == Spent(0, 0, 0, 0)
    assert (await limited.ask()).cache_status == "fwd=miss; stored"


class RunsLate:
    """A store that executes the first reservation only when `catch_up` is called."""

    def __init__(self, store: Store) -> None:
        self.name, self.kept = store.name, store.kept
        self.watch = store.watch
        self._store = store
        self._late: Sequence[Command[Any]] = ()

    async def execute(self, commands: Sequence[Command[Any]]) -> list[Any]:
        if not self._late and any(isinstance(command, Reserve) for command in commands):
            self._late = commands
            raise StoreUnavailable
        return await self._store.execute(commands)

    async def catch_up(self) -> None:
        assert self._late
        await self._store.execute(self._late)


async def test_a_reservation_that_is_executed_after_its_cancellation_reserves_nothing(
    gateway: InProcess, limited: Client, upstream: Upstream
) -> None:
    purchases = gateway.gateway.services.proxy._images._purchases
    purchases._store = late = RunsLate(purchases._store)

    refused = await limited.ask()
    await gateway.gateway.tasks.drain()
    await late.catch_up()

    assert refused.status == 503
    assert await open_journals(gateway) == 0
    assert await spent(gateway, limited) == Spent(0, 0, 0, 0)
    assert (await limited.ask()).cache_status == "fwd=miss; stored"
    assert len(await upstream.bodies()) == 1


@pytest.mark.parametrize("error", [StoreUnavailable, StoreFull])
@pytest.mark.parametrize("command", [Receive, Settle])
async def test_a_step_without_a_result_is_repeated_and_counts_once(
    gateway: InProcess,
    alice: Client,
    upstream: Upstream,
    command: type[Command[Any]],
    error: type[StoreUnavailable],
) -> None:
    """Also if the store was full for the rest of the batch, and entries were evicted."""
    evicting = gateway.gateway.store
    assert isinstance(evicting, EvictingStore)
    evicting._store = LosesResult(evicting._store, command, error=error)

    bought, hit = await alice.ask(), await alice.ask()

    assert bought.cache_status == "fwd=miss; stored"
    assert hit.images == bought.images
    (record,) = purchases_of(await gateway.ledger())
    assert await spent(gateway, alice) == Spent(record.cost_micros, 1, 0, 0)
    assert await cost_usd(gateway) == pytest.approx(record.cost_micros / 1e6)
    assert len(await upstream.bodies()) == 1


async def test_a_reservation_whose_lease_was_lost_buys_nothing(
    gateway: InProcess, limited: Client, upstream: Upstream
) -> None:
    """As if the lease had expired between the two commands."""
    purchases = gateway.gateway.services.proxy._images._purchases
    purchases._store = LosesLease(purchases._store)

    refused = await limited.ask()
    await gateway.gateway.tasks.drain()

    assert (refused.status, refused.error["code"]) == (503, "store_unavailable")
    assert await upstream.bodies() == []
    assert await spent(gateway, limited) == Spent(0, 0, 0, 0)
    assert await open_journals(gateway) == 0


@pytest.mark.timed
async def test_a_purchase_renews_its_lease_for_as_long_as_it_takes(
    open_gateway: OpenGateway, upstream: Upstream
) -> None:
    """A request after the first lease would have expired still follows the purchase."""
    dead_after = 0.5
    first_lease = RESERVED_LEASE_FACTOR * dead_after
    async with open_gateway(
        workers={"heartbeat": "0.1s", "dead_after": f"{dead_after}s"}
    ) as gateway:
        alice = await gateway.client.with_key("alice")
        async with upstream.hold() as gate:
            early = asyncio.create_task(alice.ask())
            await gate.until(1)
            await asyncio.sleep(first_lease + 0.2)
            asking = asyncio.create_task(alice.ask())
            await gateway.until_leased(2)
        late = await asking
        assert late.images == (await early).images

    assert len(await upstream.bodies()) == 1


class LosesLease:
    """A store that loses each lease just before it is renewed."""

    def __init__(self, store: Store) -> None:
        self.name, self.kept = store.name, store.kept
        self.watch = store.watch
        self._store = store

    async def execute(self, commands: Sequence[Command[Any]]) -> list[Any]:
        lost = [
            ReleaseLease(v.fingerprint, v.flight) for v in commands if isinstance(v, RenewLease)
        ]
        return (await self._store.execute([*lost, *commands]))[len(lost) :]
