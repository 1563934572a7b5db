"""Kept reads of a Redis Cluster, while slots move and masters change.

`pytest -s -m long tests/store/test_cluster_kept_reads.py` prints how long old results were found.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from redis.crc import key_slot

from gateway.errors import StoreUnavailable
from gateway.store.batch import execute
from gateway.store.commands import CompareAndSet, Get, GetValue, SetValue, Write
from gateway.store.protocol import Command, Store
from gateway.store.redis.keys import Keys
from gateway.store.redis.rights import acl_rule
from gateway.store.redis.store import open_redis_store
from tests.redis_cluster import Node, RedisCluster, moves_in_one_step, run_redis_cluster
from tests.redis_masters import open_masters
from tests.store.test_kept_reads import kept
from tests.store_traffic import show
from tests.waiting import eventually

KEYS = Keys("igw:")
HOLDS_SECONDS = 0.1
WINDOW_SECONDS = 10.0
NOT_OF_THE_GATEWAY = {"cmdstat_config|resetstat", "cmdstat_info", "cmdstat_replconf"}
"""Commands of the test, and of replicas."""
BOOKS_SLOT = key_slot(KEYS.books.encode())
RECORD = Get("keys", "alice")
VALUE = GetValue("takedowns", "version")
VALUE_SLOT = key_slot(KEYS.value(VALUE.space, VALUE.name).encode())


def change(
    value: bytes | None, *, before: bytes | None, space: str = RECORD.space
) -> CompareAndSet:
    return CompareAndSet((Write(space, RECORD.name, value, expected=before),))


def set_value(value: bytes) -> SetValue:
    return SetValue(VALUE.space, VALUE.name, value, None, is_kept=True)


@dataclass
class Pair:
    """Two processes on one cluster."""

    cluster: RedisCluster
    here: Store
    there: Store

    def other(self, node: Node) -> Node:
        return next(each for each in self.cluster.masters() if each is not node)


@asynccontextmanager
async def open_pair(cluster: RedisCluster, url: str) -> AsyncIterator[Pair]:
    async with open_redis_store(url) as here, open_redis_store(url) as there:
        yield Pair(cluster, here, there)


@pytest.fixture
async def pair(redis_cluster: RedisCluster, cluster_url: str) -> AsyncIterator[Pair]:
    async with open_pair(redis_cluster, cluster_url) as pair:
        yield pair


@asynccontextmanager
async def moving(cluster: RedisCluster, slot: int) -> AsyncIterator[None]:
    """Begins to move a slot to another master, without any key yet. Moves it back on exit."""
    source = cluster.owner_of_slot(slot)
    target = next(node for node in cluster.masters() if node is not source)
    cluster.begin_migration(slot, target)
    try:
        yield
    finally:
        cluster.move_keys(slot, source, target)
        cluster.end_migration(slot, source, target)
        move_slot(cluster, slot, source)


def move_slot(cluster: RedisCluster, slot: int, target: Node) -> Node:
    """Moves a slot to another master; returns the one that had it."""
    source = cluster.begin_migration(slot, target)
    cluster.move_keys(slot, source, target)
    cluster.end_migration(slot, source, target)
    return source


async def last_found(store: Store, read: Command[Any], old: object, *, seconds: float) -> float:
    """For how many seconds from now the store still finds an old result."""
    began, latest = time.monotonic(), 0.0
    while (now := time.monotonic()) < began + seconds:
        store.kept.fill([read])
        if store.kept.find([read]) == [old]:
            latest = now - began
        await asyncio.sleep(0.001)
    return latest


@pytest.mark.timed
async def test_an_absence_is_dropped_when_the_key_is_created_on_the_importing_node(
    pair: Pair,
) -> None:
    """The node that was read never has the key, so it does not report the write."""
    absent = Get("absent", "alice")
    assert await kept(pair.here, absent, VALUE) == [None, None]
    async with moving(pair.cluster, BOOKS_SLOT):
        assert pair.here.kept.find([absent]) == [None]
        created = change(b"one", before=None, space=absent.space)
        assert await execute(pair.there, created) is None
        assert await last_found(pair.here, absent, None, seconds=0.5) < HOLDS_SECONDS
    async with moving(pair.cluster, VALUE_SLOT):
        await execute(pair.there, set_value(b"one"))
        assert await last_found(pair.here, VALUE, None, seconds=0.5) < HOLDS_SECONDS
    assert await kept(pair.here, absent, VALUE) == [b"one", b"one"]


@pytest.mark.long
async def test_results_of_a_moved_slot_are_kept_again_from_its_new_node(pair: Pair) -> None:
    await execute(pair.there, change(b"one", before=None))
    absent = Get("absent", "alice")
    assert await kept(pair.here, RECORD, absent) == [b"one", None]
    target = pair.other(pair.cluster.owner_of_slot(BOOKS_SLOT))
    source = move_slot(pair.cluster, BOOKS_SLOT, target)
    try:
        # No command for this slot is sent, so only a ping can find that it has moved.
        await eventually(lambda: pair.here.kept.find([absent]) is None)
        assert await kept(pair.here, RECORD, absent) == [b"one", None]
        await execute(pair.there, change(b"two", before=b"one"))
        await eventually(lambda: pair.here.kept.find([RECORD]) is None)
    finally:
        move_slot(pair.cluster, BOOKS_SLOT, source)
    assert await kept(pair.here, RECORD) == [b"two"]


@pytest.mark.long
async def test_scripts_that_a_node_has_lost_are_loaded_again_for_kept_reads(pair: Pair) -> None:
    by_index = Get("keys", "secret", index="secrets")
    await kept(pair.here, RECORD)
    pair.cluster.owner(KEYS.books).run("SCRIPT", "FLUSH")
    await eventually(lambda: find_after_fill(pair.here, by_index) == [None])


def find_after_fill(store: Store, read: Command[Any]) -> list[Any] | None:
    store.kept.fill([read])
    return store.kept.find([read])


@pytest.mark.long
@pytest.mark.timed
async def test_a_process_sends_at_most_four_commands_a_second_to_each_node(pair: Pair) -> None:
    await kept(pair.here, RECORD, VALUE)
    await asyncio.sleep(1)
    with open_masters(pair.cluster.url) as masters:
        # Over connections that stay open, so that this test's own HELLO is not counted.
        for master in masters:
            master.execute_command("CONFIG", "RESETSTAT")
        await asyncio.sleep(WINDOW_SECONDS)
        found = [master.info("commandstats") for master in masters]
    assert pair.here.kept.find([RECORD, VALUE]) == [None, None]
    for stats in found:
        counted = {name: each for name, each in stats.items() if name not in NOT_OF_THE_GATEWAY}
        calls = {name.removeprefix("cmdstat_"): each["calls"] for name, each in counted.items()}
        spent = sum(each["usec"] for each in counted.values()) / WINDOW_SECONDS
        show(f"{calls} in {WINDOW_SECONDS:g} s, {spent:.0f} µs of the node a second")
        # A ping has three. The map is read every 10 s, over a connection that is opened for it.
        assert sum(calls.values()) <= 4 * WINDOW_SECONDS


@pytest.mark.long
async def test_a_node_that_refuses_tracking_is_named(redis_cluster: RedisCluster) -> None:
    redis_cluster.flush()
    redis_cluster.everywhere(*acl_rule("plain", "right", is_cluster=True).split())
    refusing = redis_cluster.owner(KEYS.books)
    refusing.run("ACL", "SETUSER", "plain", "-client|tracking")
    async with open_redis_store(redis_cluster.url.replace("//", "//plain:right@")) as store:
        await execute(store, change(b"one", before=None))
        refusal = str(await store.kept.find_refusal())
        assert refusing.name in refusal
        assert "client|tracking" in refusal
        # Results of the other nodes are kept.
        await kept(store, VALUE)
        assert find_after_fill(store, RECORD) is None


# ── while nodes change ──────────────────────────────────────────────────────────────────────────


@dataclass
class Changes:
    """Writes of one process, and how long the other still found the old results."""

    pair: Pair
    late: list[float] = field(default_factory=list)
    found: int = 0
    """How many of the results were in memory before their change."""
    _before: dict[Command[Any], bytes | None] = field(default_factory=dict)
    _count: int = 0

    async def run(self) -> None:
        """Changes the results of both reads in turn until it is cancelled."""
        while True:
            for read in (RECORD, VALUE):
                await self._change(read)

    async def _change(self, read: Command[Any]) -> None:
        before = self._before.get(read)
        for _ in range(200):
            if find_after_fill(self.pair.here, read) == [before]:
                self.found += 1
                break
            await asyncio.sleep(0.002)
        self._count += 1
        value: bytes | None = b"%d" % self._count
        if read == RECORD and before is not None and self._count % 3:
            value = None  # then the key is absent
        await self._write(read, value, before)
        self._before[read] = value
        began = time.monotonic()
        latest = 0.0
        while (now := time.monotonic()) < began + 0.15:
            if find_after_fill(self.pair.here, read) not in (None, [value]):
                latest = now - began
            await asyncio.sleep(0.001)
        if not latest or await self._read(read) == value:  # otherwise a failover has lost the write
            self.late.append(latest)

    async def _write(self, read: Command[Any], value: bytes | None, before: bytes | None) -> None:
        while True:
            with suppress(StoreUnavailable):
                if read == VALUE and value is not None:
                    await execute(self.pair.there, set_value(value))
                    return
                if await execute(self.pair.there, change(value, before=before)) is None:
                    return
            # The write may have been executed, or a failover may have lost the previous one.
            if (before := await self._read(read)) == value:
                return

    async def _read(self, read: Command[Any]) -> bytes | None:
        while True:
            with suppress(StoreUnavailable):
                found: bytes | None = await execute(self.pair.there, read)
                return found
            await asyncio.sleep(0.01)


@pytest.fixture
def own_cluster(tmp_path: Path) -> Iterator[RedisCluster]:
    """A cluster whose nodes the test may kill."""
    options = ("--min-replicas-to-write", "0")
    with run_redis_cluster(tmp_path, *options) as cluster:
        yield cluster


async def move_slots(cluster: RedisCluster, seconds: float) -> None:
    """Moves the slots of both reads from node to node, key by key."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        for slot in (BOOKS_SLOT, VALUE_SLOT):
            source = await asyncio.to_thread(cluster.owner_of_slot, slot)
            target = next(node for node in cluster.masters() if node is not source)
            await asyncio.to_thread(cluster.begin_migration, slot, target)
            await asyncio.sleep(0.2)
            await asyncio.to_thread(cluster.move_keys, slot, source, target)
            await asyncio.sleep(0.1)
            await asyncio.to_thread(cluster.end_migration, slot, source, target)
            await asyncio.sleep(0.5)


async def move_slots_in_one_step(cluster: RedisCluster, seconds: float) -> None:
    """The same with Valkey 9's atomic migration."""
    if not moves_in_one_step(cluster):
        pytest.skip("this server has no CLUSTER MIGRATESLOTS: Valkey 9 has")
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        for slot in (BOOKS_SLOT, VALUE_SLOT):
            source = await asyncio.to_thread(cluster.owner_of_slot, slot)
            target = next(node for node in cluster.masters() if node is not source)
            source.run("CLUSTER", "MIGRATESLOTS", "SLOTSRANGE", slot, slot, "NODE", target.id)
            await eventually(lambda slot=slot, target=target: cluster.owner_of_slot(slot) is target)
            await asyncio.sleep(0.5)


async def fail_over_by_hand(cluster: RedisCluster, seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        for slot in (BOOKS_SLOT, VALUE_SLOT):
            master = await asyncio.to_thread(cluster.owner_of_slot, slot)
            replica = await asyncio.to_thread(cluster.replica_of, master)
            replica.run("CLUSTER", "FAILOVER")
            await eventually(lambda replica=replica: replica.is_master())
            await asyncio.sleep(1)


async def kill_masters(cluster: RedisCluster, seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        for slot in (BOOKS_SLOT, VALUE_SLOT):
            master = await asyncio.to_thread(cluster.owner_of_slot, slot)
            replica = await asyncio.to_thread(cluster.replica_of, master)
            master.kill()
            await eventually(lambda replica=replica: replica.is_master())
            master.start()
            await asyncio.sleep(2)


async def freeze_masters(cluster: RedisCluster, seconds: float) -> None:
    """A master hangs until it has a successor, and then wakes as if nothing had happened."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        for slot in (BOOKS_SLOT, VALUE_SLOT):
            master = await asyncio.to_thread(cluster.owner_of_slot, slot)
            replica = await asyncio.to_thread(cluster.replica_of, master)
            master.freeze()
            await eventually(lambda replica=replica: replica.is_master())
            await asyncio.sleep(0.5)
            master.thaw()
            await asyncio.sleep(2)


@pytest.mark.long
@pytest.mark.timed
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "disturb",
    [move_slots, move_slots_in_one_step, fail_over_by_hand, kill_masters, freeze_masters],
)
async def test_old_results_are_not_found_while_nodes_change(
    own_cluster: RedisCluster, disturb: Callable[[RedisCluster, float], Awaitable[None]]
) -> None:
    async with open_pair(own_cluster, own_cluster.url) as pair:
        await kept(pair.here, RECORD, VALUE)
        changes = Changes(pair)
        task = asyncio.create_task(changes.run())
        try:
            await disturb(own_cluster, 30.0)
            found = changes.found
            await asyncio.sleep(5)
            assert changes.found > found  # results are kept again
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        show(
            f"{disturb.__name__}: {len(changes.late)} changes, {changes.found} of what was in"
            f" memory; found {max(changes.late) * 1000:.1f} ms after the answer at the latest"
        )
        assert max(changes.late) < HOLDS_SECONDS
