"""Hits from memory on a Redis Cluster, while slots move, connections are lost and masters change.

`pytest -s -m long tests/http/test_hits_on_a_cluster.py` prints the figures.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import redis
from redis.crc import key_slot

from gateway.cache.takedowns import SPACE, VERSION
from gateway.store.redis.keys import Keys
from tests.gateways import Client, Reply, Upstream, run_upstream
from tests.http.test_hits_from_memory import HITS, HOLDS_SECONDS, open_workers
from tests.redis_cluster import RedisCluster, run_redis_cluster
from tests.store_traffic import show
from tests.waiting import eventually, until

KEYS = Keys("igw:")
BOOKS_SLOT = key_slot(KEYS.books.encode())
TAKEDOWNS_SLOT = key_slot(KEYS.value(SPACE, VERSION).encode())

KINDS = ("limit", "purge", "takedown", "revoke")

pytestmark = [pytest.mark.long, pytest.mark.timed, pytest.mark.timeout(3600)]


@pytest.fixture
def own_cluster(tmp_path: Path) -> Iterator[RedisCluster]:
    """A cluster whose nodes the test may kill, with the settings that the docs recommend."""
    folder = tmp_path / "cluster"
    folder.mkdir()
    options = ("--min-replicas-to-write", "1", "--min-replicas-max-lag", "2")
    with run_redis_cluster(folder, *options, durable=True) as cluster:
        yield cluster


@dataclass
class Changes:
    """Changes of an administrator, and how long workers still answered as before them."""

    clients: list[Client]
    """One for each of four workers, on two gateways."""
    late: dict[str, list[float]] = field(default_factory=lambda: {kind: [] for kind in KINDS})
    from_memory: int = 0
    asked: int = 0

    async def run(self, times: int, *, disturb: Callable[[], Awaitable[None]]) -> None:
        """Makes a change of each kind `times` times. `disturb` runs during each change."""
        for number in range(times):
            key = await self._add_key(f"key{number}")
            users = [replace(one, secret=key.secret, key_id=key.key_id) for one in self.clients]
            for kind, found in self.late.items():
                image = await self._fill_memories(users)
                disturbing = asyncio.create_task(disturb())
                await self._change(users[0], kind, image)
                found.append(await self._last_stale(users, image))
                await disturbing
                if kind == "limit":
                    await self._change(users[0], "lift", image)

    @property
    def worst(self) -> float:
        return max(map(max, self.late.values()))

    def __str__(self) -> str:
        count = sum(map(len, self.late.values()))
        worst = {kind: f"{max(found) * 1000:.0f} ms" for kind, found in self.late.items()}
        share = self.from_memory / self.asked
        return f"{count} changes, {share:.0%} of what was asked before them from memory; {worst}"

    async def _add_key(self, name: str) -> Client:
        for attempt in range(100):
            with suppress(AssertionError):  # the store is unavailable
                # With a budget no request is answered without the store.
                return await self.clients[0].with_key(
                    f"{name}-{attempt}", limits={"usd_per_day": 1000}
                )
            await asyncio.sleep(0.1)
        raise AssertionError("the store stays unavailable")

    async def _fill_memories(self, users: list[Client]) -> str:
        """Asks each worker until all answer the same image, from memory if they can."""

        async def look() -> set[str] | None:
            replies = [await user.ask() for user in users for _ in range(3)]
            images = {reply.headers.get("x-gateway-image-ids", "") for reply in replies}
            return images if {r.status for r in replies} == {200} and len(images) == 1 else None

        await eventually(look)
        # Workers drop the results of an announced change again a moment later.
        await asyncio.sleep(HOLDS_SECONDS)
        found: set[str] = await eventually(look)
        before = await self._hits()
        replies = [await user.ask() for user in users]
        self.from_memory += round(await self._hits() - before)
        self.asked += len(replies)
        (image,) = found
        return image

    async def _hits(self) -> float:
        metrics = [await client.metrics() for client in (self.clients[0], self.clients[-1])]
        return sum(each.get(HITS, 0.0) for each in metrics)

    async def _change(self, admin: Client, kind: str, image: str) -> None:
        """Changes what a hit depends on, and returns once a gateway has answered."""
        key = f"/admin/keys/{admin.key_id}"
        method, path, body = {
            "limit": ("PATCH", key, {"limits": {"requests_per_minute": 0}}),
            "lift": ("PATCH", key, {"limits": {"requests_per_minute": None}}),
            "purge": ("POST", "/admin/cache/purge", {"all": True}),
            "takedown": ("POST", "/admin/cache/takedown", {"image": image}),
            "revoke": ("DELETE", key, None),
        }[kind]

        async def attempt() -> Reply | None:
            reply = await admin.admin(method, path, body)
            # 404: an attempt that got 503 was executed.
            return reply if reply.status in (200, 202, 204, 404) else None

        await eventually(attempt)

    async def _last_stale(self, users: list[Client], image: str) -> float:
        """How many seconds after the change the last worker still answered as before it."""
        since, latest = time.monotonic(), 0.0

        async def watch(user: Client) -> None:
            nonlocal latest
            while (asked_at := time.monotonic()) < since + 0.4:
                reply = await user.ask()
                if reply.status == 200 and reply.headers.get("x-gateway-image-ids") == image:
                    latest = max(latest, asked_at - since)
                elif reply.status == 401:
                    await asyncio.sleep(0.05)  # too many failed authentications block the address

        await asyncio.gather(*map(watch, users))
        return latest


@asynccontextmanager
async def open_changes(folder: Path, url: str) -> AsyncIterator[Changes]:
    async with AsyncExitStack() as stack:
        upstream: Upstream = await stack.enter_async_context(run_upstream())
        clients = await stack.enter_async_context(open_workers(folder, upstream, url, gateways=2))
        yield Changes(clients)


async def nothing() -> None:
    """Disturbs nothing."""


@pytest.mark.parametrize("times", [20, 1000])
async def test_every_change_holds_on_every_worker_within_100_ms(
    tmp_path: Path, cluster_url: str, times: int
) -> None:
    async with open_changes(tmp_path, cluster_url) as changes:
        await changes.run(times, disturb=nothing)
        show(f"undisturbed: {changes}")
        assert changes.worst < HOLDS_SECONDS
        assert changes.from_memory > 0.95 * changes.asked


async def test_nothing_is_stale_although_tracking_connections_are_killed(
    tmp_path: Path, redis_cluster: RedisCluster, cluster_url: str
) -> None:
    def kill() -> None:
        for node in redis_cluster.masters():
            with redis.Redis(port=node.port) as admin:
                for client in admin.client_list():
                    if "t" in client["flags"]:
                        admin.client_kill_filter(_id=client["id"])

    async with open_changes(tmp_path, cluster_url) as changes:
        await changes.run(30, disturb=lambda: asyncio.to_thread(kill))
        show(f"tracking killed: {changes}")
        assert changes.worst < HOLDS_SECONDS
        assert changes.from_memory > 0.9 * changes.asked


def entry_slots(cluster: RedisCluster) -> list[int]:
    """The slots of all entries."""
    found = (key for node in cluster.masters() for key in node.run("KEYS", f"{KEYS.prefix}entry:*"))
    return sorted({key_slot(key) for key in found})


def move(cluster: RedisCluster, slot: int) -> None:
    """Moves a slot to another master, key by key."""
    source = cluster.owner_of_slot(slot)
    target = next(node for node in cluster.masters() if node is not source)
    cluster.begin_migration(slot, target)
    time.sleep(0.02)
    cluster.move_keys(slot, source, target, limit=1)
    time.sleep(0.02)
    cluster.move_keys(slot, source, target)
    cluster.end_migration(slot, source, target)


async def test_nothing_is_stale_while_the_slots_of_these_keys_move(
    tmp_path: Path, own_cluster: RedisCluster
) -> None:
    """The slots of keys, limits and purges (the books), of the entry, and of take-downs."""

    def move_all() -> None:
        for slot in (*entry_slots(own_cluster), TAKEDOWNS_SLOT, BOOKS_SLOT):
            move(own_cluster, slot)

    async with open_changes(tmp_path, own_cluster.url) as changes:
        await changes.run(25, disturb=lambda: asyncio.to_thread(move_all))
        show(f"slots moved: {changes}")
        assert changes.worst < HOLDS_SECONDS
        assert changes.from_memory > 0.9 * changes.asked


@pytest.mark.parametrize("how", ["by hand", "kill -9", "hangs"])
async def test_nothing_is_stale_after_a_failover(
    tmp_path: Path, own_cluster: RedisCluster, how: str
) -> None:
    def has_replica() -> bool:
        # On a busy machine the nodes may have elected another master meanwhile.
        role, _, replicas, *_ = own_cluster.owner_of_slot(BOOKS_SLOT).run("ROLE")
        return role == b"master" and bool(replicas)

    def fail_over() -> None:
        master = own_cluster.owner_of_slot(BOOKS_SLOT)
        replica = own_cluster.replica_of(master)
        if how == "by hand":
            replica.run("CLUSTER", "FAILOVER")
        elif how == "kill -9":
            master.kill()
        else:
            master.freeze()
        while not replica.is_master():
            time.sleep(0.01)
        if how == "kill -9":
            master.start()
        elif how == "hangs":
            # It wakes as if it still were a master. Within `min-replicas-max-lag` it would accept
            # writes and lose them.
            time.sleep(3)
            master.thaw()
        until(has_replica)

    async with open_changes(tmp_path, own_cluster.url) as changes:
        await changes.run(5, disturb=lambda: asyncio.to_thread(fail_over))
        show(f"failover, {how}: {changes}")
        assert changes.worst < HOLDS_SECONDS
        assert changes.from_memory > 0.9 * changes.asked
