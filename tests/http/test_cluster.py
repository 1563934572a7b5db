"""Gateways on a Redis Cluster: one purchase, whole books, and traffic while nodes change.

`pytest -s -m long tests/http/test_cluster.py` prints the figures.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from redis.crc import key_slot

from gateway.store.redis.keys import Keys
from tests.gateways import (
    Client,
    InProcess,
    Upstream,
    make_settings,
    run_gateway,
    run_upstream,
)
from tests.http.test_bounds import fat_png, run_fat_upstream
from tests.http.test_hits_from_memory import until_from_memory
from tests.redis_cluster import Node, RedisCluster, moves_in_one_step, run_redis_cluster
from tests.store_traffic import show, traffic
from tests.waiting import eventually

KEYS = Keys("igw:")


@pytest.fixture
async def pair(
    tmp_path: Path, cluster_url: str
) -> AsyncIterator[tuple[InProcess, InProcess, Upstream]]:
    """Two gateways on one cluster, with the rights that the documentation names."""
    async with AsyncExitStack() as stack:
        upstream = await stack.enter_async_context(run_upstream())
        settings = make_settings(tmp_path / "data", upstream.base_url, cluster_url)
        one, other = [await stack.enter_async_context(run_gateway(settings)) for _ in range(2)]
        yield one, other, upstream


async def test_a_hundred_identical_requests_are_one_purchase(
    pair: tuple[InProcess, InProcess, Upstream],
) -> None:
    one, other, upstream = pair
    client = await one.client.with_key(limits={"images_per_day": 1, "requests_per_minute": 1000})
    elsewhere = Client(other.client.url, other.client.session, client.secret)
    replies = await asyncio.gather(
        *(each.ask("an otter") for _ in range(50) for each in (client, elsewhere))
    )
    assert Counter(reply.status for reply in replies) == {200: 100}
    assert len(await upstream.calls()) == 1
    assert len({reply.images[0] for reply in replies}) == 1
    refused = await elsewhere.ask("another otter")
    assert (refused.status, refused.error["code"]) == (429, "insufficient_quota")
    bought = [record for record in await one.ledger() if record.outcome == "bought"]
    assert len(bought) == 1


async def test_an_image_by_link_is_served_by_the_other_gateway_until_a_purge(
    pair: tuple[InProcess, InProcess, Upstream],
) -> None:
    one, other, _ = pair
    client = await one.client.with_key()
    reply = await client.ask("an otter", response_format="url", model="dall-e-2", size="256x256")
    path = "/images/" + reply.json["data"][0]["url"].split("/images/")[1]
    assert (await other.client.send("GET", path)).status == 200
    assert "hit" in (await client.ask("an otter", model="dall-e-2", size="256x256")).cache_status
    purged = await one.client.admin("POST", "/admin/cache/purge", {"all": True})
    assert purged.status in (200, 202)
    again = await client.ask("an otter", model="dall-e-2", size="256x256")
    assert "hit" not in again.cache_status


async def test_hits_come_from_memory_until_the_other_gateway_changes_something(
    pair: tuple[InProcess, InProcess, Upstream],
) -> None:
    one, other, upstream = pair
    client = await one.client.with_key()
    admin = replace(client, url=other.client.url, session=other.client.session, admin_url="")
    reply = await until_from_memory(client)
    image = {"image": reply.headers["x-gateway-image-ids"]}
    assert (await admin.admin("POST", "/admin/cache/takedown", image)).status == 200
    assert (await client.ask()).cache_status == "fwd=miss; stored"
    await until_from_memory(client)
    assert (await admin.admin("POST", "/admin/cache/purge", {"all": True})).status == 200
    assert (await client.ask()).cache_status == "fwd=miss; stored"
    await until_from_memory(client)
    assert (await admin.admin("DELETE", f"/admin/keys/{client.key_id}")).status == 204
    assert (await client.ask()).status == 401
    assert len(await upstream.calls()) == 3


# ── while a node is full ────────────────────────────────────────────────────────────────────────


@pytest.mark.timeout(120)
@pytest.mark.parametrize("full", ["other", pytest.param("books", marks=pytest.mark.long)])
async def test_if_one_node_is_full_only_its_images_are_evicted(
    tmp_path: Path, cluster_url: str, redis_cluster: RedisCluster, full: str
) -> None:
    books = redis_cluster.owner(KEYS.books)
    node = books if full == "books" else _other(redis_cluster, books)
    count, image_bytes = 36, 512 << 10
    images = {
        hashlib.sha256(fat_png(image_bytes, number)).hexdigest(): str(number)
        for number in range(count)
    }
    async with run_fat_upstream(image_bytes) as upstream:
        settings = make_settings(
            tmp_path / "data",
            upstream,
            cluster_url,
            cache={"total_bytes": 1 << 30, "memory_bytes": 0},
        )
        async with run_gateway(settings) as here:
            alice = await here.client.with_key()
            room = node.run("INFO", "memory")["used_memory"] + 6 * image_bytes
            try:
                # The others have no bound, and the oldest image is on one of them.
                node.run("CONFIG", "SET", "maxmemory", room)
                replies = [await alice.ask(number) for number in images.values()]
                records = await here.ledger()
            finally:
                node.run("CONFIG", "SET", "maxmemory", 0)

    assert Counter((reply.status, reply.cache_status) for reply in replies) == {
        (200, "fwd=miss; stored"): count
    }
    assert [record.outcome for record in records] == ["bought"] * count
    owners = {digest: redis_cluster.owner(KEYS.blob(digest)) for digest in images}
    stored = {d for d, owner in owners.items() if owner.run("EXISTS", KEYS.blob(d))}
    evicted = images.keys() - stored
    assert {owners[digest].name for digest in evicted} == {node.name}
    assert 2 <= len(evicted) < sum(owner is node for owner in owners.values())


# ── while nodes change ──────────────────────────────────────────────────────────────────────────


@pytest.fixture
def safe_cluster(tmp_path: Path) -> Iterator[RedisCluster]:
    """A cluster that acknowledges no write without a replica, and keeps all of them."""
    options = ("--min-replicas-to-write", "1", "--min-replicas-max-lag", "2")
    with run_redis_cluster(tmp_path, *options, durable=True) as cluster:
        yield cluster


@pytest.mark.long
@pytest.mark.timed
class TestWhileNodesChange:
    @pytest.mark.parametrize("which", ["books", "other"])
    async def test_a_master_is_killed_and_comes_back_as_a_replica(
        self, tmp_path: Path, safe_cluster: RedisCluster, which: str
    ) -> None:
        async with traffic(tmp_path / "gateway", safe_cluster.url) as now:
            books = safe_cluster.owner(KEYS.books)
            lost = books if which == "books" else _other(safe_cluster, books)
            killed_at = time.monotonic()
            lost.kill()
            # As a supervisor would, because the new master refuses writes until it has a replica.
            await asyncio.sleep(1)
            lost.start()
            await asyncio.sleep(6)
            seconds = now.buyers.first_after(killed_at + 0.1)
            show(f"{which} node killed: first purchase after {seconds:.2f} s; {await now.settle()}")
            assert seconds < 5

    async def test_a_failover_by_hand(self, tmp_path: Path, safe_cluster: RedisCluster) -> None:
        async with traffic(tmp_path / "gateway", safe_cluster.url) as now:
            books = safe_cluster.owner(KEYS.books)
            began = time.monotonic()
            safe_cluster.replica_of(books).run("CLUSTER", "FAILOVER")
            await eventually(lambda: not books.is_master())
            await asyncio.sleep(3)
            seconds = now.buyers.first_after(began + 0.1)
            show(f"CLUSTER FAILOVER: first purchase after {seconds:.2f} s; {await now.settle()}")
            assert seconds < 5

    async def test_all_slots_of_a_node_but_the_books_move_key_by_key(
        self, tmp_path: Path, safe_cluster: RedisCluster
    ) -> None:
        async with traffic(tmp_path / "gateway", safe_cluster.url) as now:
            books = safe_cluster.owner(KEYS.books)
            target = _other(safe_cluster, books)
            first, last = _range_of(books)
            kept = key_slot(KEYS.books.encode())
            moving = [slot for slot in range(first, last + 1) if slot != kept][::54]
            await asyncio.to_thread(_move, safe_cluster, moving, books, target)
            await asyncio.sleep(1)
            show(f"{len(moving)} slots moved: {await now.settle()}")
            assert now.buyers.statuses.keys() == {200}

    async def test_the_slot_of_the_books_moves_key_by_key(
        self, tmp_path: Path, safe_cluster: RedisCluster
    ) -> None:
        """Requests that need the books wait, or get 503; nothing is half written."""
        async with traffic(tmp_path / "gateway", safe_cluster.url) as now:
            books = safe_cluster.owner(KEYS.books)
            slot = [key_slot(KEYS.books.encode())]
            began = time.monotonic()
            await asyncio.to_thread(_move, safe_cluster, slot, books, _other(safe_cluster, books))
            moved_at = time.monotonic()
            await asyncio.sleep(3)
            seconds = now.buyers.first_after(moved_at)
            show(f"books moved in {moved_at - began:.2f} s, a purchase {seconds:.2f} s later;"
                 f" {await now.settle()}")  # fmt: skip
            assert seconds < 5
            assert now.buyers.statuses.keys() <= {200, 503}

    async def test_the_slot_of_the_books_moves_in_one_step_on_valkey_9(
        self, tmp_path: Path, safe_cluster: RedisCluster
    ) -> None:
        """No request fails. Run with `REDIS_SERVER=…/valkey-server` of version 9 or newer."""
        if not moves_in_one_step(safe_cluster):
            pytest.skip("this server has no CLUSTER MIGRATESLOTS: Valkey 9 has")
        async with traffic(tmp_path / "gateway", safe_cluster.url) as now:
            books = safe_cluster.owner(KEYS.books)
            target = _other(safe_cluster, books)
            slot = key_slot(KEYS.books.encode())
            began = time.monotonic()
            books.run("CLUSTER", "MIGRATESLOTS", "SLOTSRANGE", slot, slot, "NODE", target.id)
            await eventually(lambda: safe_cluster.owner(KEYS.books) is target)
            moved_at = time.monotonic()
            await asyncio.sleep(2)
            seconds = now.buyers.first_after(moved_at)
            show(f"books moved in {moved_at - began:.2f} s, a purchase {seconds:.2f} s later;"
                 f" {await now.settle()}")  # fmt: skip
            assert now.buyers.statuses.keys() == {200}


def _other(cluster: RedisCluster, node: Node) -> Node:
    return next(each for each in cluster.masters() if each is not node)


def _range_of(node: Node) -> tuple[int, int]:
    for first, last, master, *_ in node.run("CLUSTER", "SLOTS"):
        if master[1] == node.port:
            return int(first), int(last)
    raise AssertionError("the node has no slots")


def _move(cluster: RedisCluster, slots: list[int], source: Node, target: Node) -> None:
    for slot in slots:
        cluster.begin_migration(slot, target)
        cluster.move_keys(slot, source, target)
        cluster.end_migration(slot, source, target)
