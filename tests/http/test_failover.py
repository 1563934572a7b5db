"""A failover of Redis: its address moves from a demoted master to the replica that was promoted.

The connections to the old master stay open, and it goes on answering reads, as a replica.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from gateway.configuration.settings import Settings
from tests.failover import RedisPair, run_redis_pair
from tests.gateways import (
    USUAL,
    Client,
    InProcess,
    Reply,
    Upstream,
    make_settings,
    read_spent,
    run_gateway,
    run_processes,
)
from tests.waiting import eventually
from tests.wrk import find_wrk, flood

RECOVERY_SECONDS = 5.0


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[RedisPair]:
    async with run_redis_pair(tmp_path / "redis") as started:
        yield started


@pytest.fixture
async def gateway(tmp_path: Path, upstream: Upstream, pair: RedisPair) -> AsyncIterator[InProcess]:
    settings = make_settings(tmp_path / "data", upstream.base_url, pair.address.url)
    async with run_gateway(settings) as started:
        yield started


@pytest.mark.timed
async def test_after_a_failover_the_gateway_uses_the_new_master(
    gateway: InProcess, pair: RedisPair
) -> None:
    """Limited keys buy again, and the books have everything from before and after."""
    limited = await gateway.client.with_key(limits={"usd_per_day": 100})
    before = await limited.ask("before")
    pair.until_in_sync()
    pair.demote()
    pair.move()

    async def is_back() -> bool:
        return (await limited.ask("after")).status == 200

    async with asyncio.timeout(RECOVERY_SECONDS):
        await eventually(is_back)
    again = await limited.ask("before")
    assert (before.status, again.cache_status.partition(";")[0]) == (200, "hit")
    records = await gateway.ledger()
    bought = sum(record.cost_micros for record in records)
    assert Counter(r.outcome for r in records)["bought"] == 2
    assert (await read_spent(gateway.settings, limited.key_id)).usd_micros == bought


async def test_the_first_request_after_a_failover_is_not_refused(
    gateway: InProcess, pair: RedisPair
) -> None:
    """A server that refuses a write for being a replica has executed nothing of it."""
    limited = await gateway.client.with_key(limits={"usd_per_day": 100})
    assert (await limited.ask("before")).status == 200
    pair.until_in_sync()
    pair.demote()
    pair.move()
    replies = await asyncio.gather(*(limited.ask(f"after {i}") for i in range(20)))
    assert Counter(reply.status for reply in replies) == {200: 20}


@pytest.mark.timed
async def test_an_idle_gateway_leaves_a_demoted_master_within_seconds(
    gateway: InProcess, pair: RedisPair
) -> None:
    """Commands, bytes and notifications: the old master has no connection from the address left."""
    alice = await gateway.client.with_key()
    await alice.ask("an otter")
    async with gateway.gateway.store.watch("a-flight"):
        pair.until_in_sync()
        pair.demote()
        pair.move()

        def is_subscribed() -> bool:
            with pair.new as new:
                return bool(new.pubsub_channels())

        await eventually(is_subscribed)
    await alice.ask("an otter")

    def is_left() -> bool:
        with pair.old as old:
            return all(c["cmd"] not in ("evalsha", "subscribe", "get") for c in old.client_list())

    await eventually(is_left)


async def test_while_the_address_leads_to_a_replica_the_reason_is_told(
    gateway: InProcess, pair: RedisPair
) -> None:
    """And the gateway tries again, but does not flood the replica."""
    limited = await gateway.client.with_key(limits={"usd_per_day": 100})
    await limited.ask("before")
    pair.until_in_sync()
    pair.demote()
    connections = pair.address.connections
    replies = [await limited.ask("during") for _ in range(4)]
    ready = await limited.send("GET", "/readyz")
    assert {reply.error["code"] for reply in replies} == {"store_unavailable"}
    assert pair.address.connections - connections < 20
    assert ready.json["degraded"] == ["store"]
    assert "read-only replica" in ready.json["reasons"]["store"]
    pair.move()

    async def is_back() -> bool:
        return (await limited.ask("during")).status == 200

    await eventually(is_back)
    assert (await limited.send("GET", "/readyz")).json == {"status": "ready", "degraded": []}


# ── under load ──────────────────────────────────────────────────────────────────────────────


@dataclass
class Buyer:
    """Buys one new image after the other, and remembers what it was told."""

    client: Client
    name: str
    acknowledged: list[str] = field(default_factory=list)
    refused_at: list[float] = field(default_factory=list)
    cost_micros: int = 0

    async def buy(self, ended: asyncio.Event) -> None:
        number = 0
        while not ended.is_set():
            number += 1
            prompt = f"{self.name} {number}"
            reply: Reply = await self.client.ask(prompt)
            if reply.status == 200:
                self.acknowledged.append(prompt)
                self.cost_micros += round(float(reply.headers["x-gateway-cost-usd"]) * 1e6)
            else:
                assert reply.error["code"] == "store_unavailable", reply.body
                self.refused_at.append(time.monotonic())
            await asyncio.sleep(0.02)


@pytest.mark.long
@pytest.mark.timed
@pytest.mark.parametrize("kind", ["FAILOVER", "REPLICAOF"])
async def test_a_failover_under_load_loses_nothing_that_was_acknowledged(
    tmp_path: Path, upstream: Upstream, pair: RedisPair, kind: str
) -> None:
    """wrk fetches a cached image meanwhile. Ledger, counters and upstream's calls agree."""
    wrk = find_wrk()
    given = (tmp_path / "gateway", upstream.base_url)
    async with run_processes(*given, workers=2, redis_url=pair.address.url) as (processes, client):
        reader = await client.with_key("reader", limits={"requests_per_minute": 10_000_000})
        await reader.ask("cached")
        keys = [
            await client.with_key(f"buyer-{i}", limits={"usd_per_month": 1000}) for i in range(8)
        ]
        buyers = [Buyer(key, f"buyer {i}") for i, key in enumerate(keys)]
        ended = asyncio.Event()
        body = {**USUAL, "prompt": "cached"}
        async with flood(wrk, reader, body, keep_alive=True) as stop:
            buying = [asyncio.create_task(buyer.buy(ended)) for buyer in buyers]
            await asyncio.sleep(3)
            fail_over = pair.fail_over if kind == "FAILOVER" else pair.demote_in_sync
            await asyncio.to_thread(fail_over)
            demoted_at = time.monotonic()
            await asyncio.sleep(1)  # as a change of DNS takes
            pair.move()
            moved_at = time.monotonic()
            await asyncio.sleep(8)
            ended.set()
            await asyncio.gather(*buying)
            flooded = await stop()
        refused = sorted(at for buyer in buyers for at in buyer.refused_at)
        recovery = max([at - moved_at for at in refused if at > moved_at], default=0.0)
        summary = (
            f"{kind}: {sum(len(b.acknowledged) for b in buyers)} purchases, {len(refused)} of 503;"
            f" the address moved after {moved_at - demoted_at:.1f} s, the last 503 came"
            f" {recovery:.2f} s later; wrk: {flooded}"
        )
        await eventually(lambda: have_settled(processes.settings, buyers))
        records, calls = await processes.ledger(), await upstream.bodies()
        spent = [await read_spent(processes.settings, key.key_id) for key in keys]
    assert recovery < RECOVERY_SECONDS, summary
    for key, buyer, counted in zip(keys, buyers, spent, strict=True):
        of_key = [record for record in records if record.key_id == key.key_id]
        sent = Counter(body["prompt"] for body in calls if body["prompt"].startswith(buyer.name))
        bought = [record for record in of_key if record.outcome == "bought"]
        assert set(buyer.acknowledged) <= set(sent)
        assert set(sent.values()) == {1}
        assert len(bought) == len(sent)
        assert sum(record.cost_micros for record in of_key) == counted.usd_micros
        assert buyer.cost_micros == counted.usd_micros - sum(
            record.cost_micros for record in bought[len(buyer.acknowledged) :]
        )


async def have_settled(settings: Settings, buyers: list[Buyer]) -> bool:
    """Whether nothing is reserved any more."""
    spent = [await read_spent(settings, buyer.client.key_id) for buyer in buyers]
    return all(counted.reserved_micros == 0 for counted in spent)
