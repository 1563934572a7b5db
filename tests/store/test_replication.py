"""Purchases are acknowledged once replicas have them, so that an election loses none of these."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import structlog.testing

from gateway.errors import StoreUnavailable
from gateway.store import commands
from gateway.store.batch import execute
from gateway.store.blobs.redis import open_redis_blobs
from gateway.store.protocol import Command, Store
from gateway.store.redis import replication
from gateway.store.redis.store import open_redis_store
from tests.redis_cluster import Node, RedisCluster, run_redis_cluster
from tests.sentinel_servers import SentinelServers, run_sentinel_servers
from tests.waiting import eventually

RECEIVE = commands.Receive("p", b"images")
WRITE = commands.SetValue("s", "n", b"v", None)


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SentinelServers]:
    # Sentinels never promote within a minute: these tests pause replicas and kill connections.
    lines = ["sentinel down-after-milliseconds images 60000"]
    with run_sentinel_servers(tmp_path_factory.mktemp("sentinel"), sentinel_lines=lines) as servers:
        yield servers


@pytest.fixture
def servers(started: SentinelServers) -> Iterator[SentinelServers]:
    """An empty master that takes writes although its replicas are paused."""
    with started.master.client() as client:
        client.config_set("min-replicas-to-write", 0)
    started.until_replicas()
    started.flush()
    yield started
    for each in started.servers:
        each.go_on()


@contextmanager
def replicas_paused(servers: SentinelServers) -> Iterator[None]:
    replicas = [each for each in servers.servers if each is not servers.master]
    for each in replicas:
        each.stop()
    try:
        yield
    finally:
        for each in replicas:
            each.go_on()


async def is_stuck(task: asyncio.Task[object]) -> bool:
    done, _ = await asyncio.wait([task], timeout=0.2)
    return not done


async def has_connected(store: Store) -> None:
    await execute(store, RECEIVE)


@pytest.mark.parametrize(
    "command",
    [
        RECEIVE,
        commands.Settle("p", {}, b"{}"),
        commands.Settle("p", {}, None),
        commands.CompareAndSet((commands.Write("keys", "k", b"revoked", expected=None),)),
        commands.SetValue("takedowns", "version", b"2", None, is_kept=True),
    ],
    ids=["received", "settled", "given up", "record", "take-down"],
)
async def test_a_write_that_must_not_be_lost_is_answered_once_a_replica_has_it(
    servers: SentinelServers, command: Command[object]
) -> None:
    """Other commands of the worker do not wait meanwhile."""
    servers.flush()
    async with open_redis_store(servers.url) as store:
        await has_connected(store)
        with replicas_paused(servers):
            waiting = asyncio.create_task(execute(store, command))
            assert await is_stuck(waiting)
            await execute(store, WRITE)
            assert not waiting.done()
        await waiting


async def test_a_cancelled_request_does_not_cancel_the_fence_of_others(
    servers: SentinelServers,
) -> None:
    async with open_redis_store(servers.url) as store:
        await has_connected(store)
        with replicas_paused(servers):
            first, second = (asyncio.create_task(execute(store, RECEIVE)) for _ in range(2))
            assert await is_stuck(first)
            first.cancel()
            assert await is_stuck(second)
        assert await second == "unknown"
        assert first.cancelled()


async def test_a_purchase_is_repeated_if_its_master_is_gone(servers: SentinelServers) -> None:
    """Because nothing says whether the next master has it."""
    async with open_redis_store(servers.url) as store:
        await has_connected(store)
        with replicas_paused(servers):
            waiting = asyncio.create_task(execute(store, RECEIVE))
            assert await is_stuck(waiting)
            with servers.master.client() as client:
                client.client_kill_filter(_type="normal", skipme=True)
            with pytest.raises(StoreUnavailable):
                await waiting
        await eventually(lambda: _succeeds(store))


async def _succeeds(store: Store) -> bool:
    try:
        return bool(await execute(store, RECEIVE))
    except StoreUnavailable:
        return False


async def test_without_replicas_purchases_go_on_and_a_warning_is_logged(
    servers: SentinelServers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replication, "GIVE_UP_SECONDS", 0.2)
    monkeypatch.setattr(replication, "WAIT_SECONDS", 0.1)
    with structlog.testing.capture_logs() as logs:
        async with open_redis_store(servers.url) as store:
            await has_connected(store)
            with replicas_paused(servers):
                assert await execute(store, RECEIVE) == "unknown"
                before = waits(servers)
                for _ in range(50):
                    assert await execute(store, RECEIVE) == "unknown"
                assert waits(servers) - before < 50, "one of each second waits"
            await eventually(lambda: _confirms(store, logs))
    (begun,) = (line for line in logs if line["event"] == "replication_unconfirmed")
    assert begun["reason"] == "No replica of the Redis has confirmed within 0.2 s."


def waits(servers: SentinelServers) -> int:
    """How often the master was asked to wait."""
    with servers.master.client() as client:
        found = client.info("commandstats").get("cmdstat_wait", {"calls": 0})
    return int(found["calls"])


async def _confirms(store: Store, logs: list[dict[str, object]]) -> bool:
    await execute(store, RECEIVE)
    return any(line["event"] == "replication_confirmed" for line in logs)


@pytest.mark.long
async def test_the_error_of_a_master_without_replicas_says_what_to_do(
    servers: SentinelServers,
) -> None:
    """The master refuses the purchase until a replica is back."""
    async with open_redis_store(servers.url) as store:
        await has_connected(store)
        with servers.master.client() as client:
            client.config_set("min-replicas-to-write", 1)
        reasons: set[str] = set()
        with replicas_paused(servers):

            async def is_refused() -> bool:
                try:
                    await execute(store, RECEIVE)
                except StoreUnavailable as error:
                    reasons.add(error.reason or "")
                return any("min-replicas-to-write: start a replica" in each for each in reasons)

            await eventually(is_refused)
        await eventually(lambda: _succeeds(store))


async def test_the_warning_names_a_user_without_the_right_to_wait(servers: SentinelServers) -> None:
    url = servers.restricted()
    with servers.master.client() as client:
        client.execute_command("ACL", "SETUSER", "gateway", "-wait")
    with structlog.testing.capture_logs() as logs:
        async with open_redis_store(url) as store:
            assert await execute(store, RECEIVE) == "unknown"
            assert "ACL SETUSER gateway +wait" in str(await store.find_wait_refusal())
    (begun,) = (line for line in logs if line["event"] == "replication_unconfirmed")
    assert "ACL SETUSER gateway +wait" in str(begun["reason"])


@pytest.mark.long
async def test_in_a_cluster_a_purchase_waits_for_the_replicas_of_its_nodes(
    redis_cluster: RedisCluster,
) -> None:
    """Its only node here is that of the books."""
    redis_cluster.flush()
    books = redis_cluster.owner("igw:{books}:x")
    other = next(each for each in redis_cluster.masters() if each is not books)
    async with open_redis_store(redis_cluster.restricted()) as store:
        await has_connected(store)
        for master, is_waited_for in ((other, False), (books, True)):
            replica = redis_cluster.replica_of(master)
            replica.freeze()
            try:
                waiting = asyncio.create_task(execute(store, RECEIVE))
                assert await is_stuck(waiting) == is_waited_for
            finally:
                replica.thaw()
            assert await waiting == "unknown"


@pytest.mark.long
async def test_in_a_cluster_the_node_of_the_bytes_is_waited_for(
    redis_cluster: RedisCluster,
) -> None:
    redis_cluster.flush()
    async with open_redis_blobs(redis_cluster.url) as blobs:
        await blobs.put("0" * 64, b"bytes", 60.0)
        replica = redis_cluster.replica_of(redis_cluster.owner("igw:blob:" + "0" * 64))
        replica.freeze()
        try:
            waiting = asyncio.create_task(blobs.put("0" * 64, b"bytes", 60.0))
            assert await is_stuck(waiting)
        finally:
            replica.thaw()
        await waiting


@pytest.mark.long
async def test_in_a_cluster_a_purchase_is_repeated_if_its_master_is_gone(
    redis_cluster: RedisCluster,
) -> None:
    redis_cluster.flush()
    books = redis_cluster.owner("igw:{books}:x")
    replica = redis_cluster.replica_of(books)
    async with open_redis_store(redis_cluster.restricted()) as store:
        await has_connected(store)
        replica.freeze()
        try:
            waiting = asyncio.create_task(execute(store, RECEIVE))
            assert await is_stuck(waiting)
            books.run("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            with pytest.raises(StoreUnavailable):
                await waiting
        finally:
            replica.thaw()
        await eventually(lambda: _succeeds(store))


@pytest.mark.long
async def test_in_a_cluster_a_batch_is_repeated_if_a_replica_takes_over_in_the_middle(
    tmp_path: Path,
) -> None:
    """The replica may lack what its master had answered before the rest of the batch."""
    with run_redis_cluster(tmp_path) as cluster:
        lost, slow = cluster.masters()[:2]
        batch: list[Command[Any]] = [
            commands.SetValue("s", name_at(cluster, node), b"v", None, is_kept=True)
            for node in (lost, slow)
        ]
        # So that the second is sent after the reply to the first.
        batch.insert(1, commands.GetValue("s", name_at(cluster, lost)))
        async with open_redis_store(cluster.url) as store:
            await store.execute(batch)
            slow.run("CLIENT", "PAUSE", 1500, "WRITE")
            waiting = asyncio.create_task(store.execute(batch))
            assert await is_stuck(waiting)
            cluster.replica_of(lost).run("CLUSTER", "FAILOVER", "TAKEOVER")
            await eventually(lambda: not lost.is_master())
            await execute(store, batch[0])
            with pytest.raises(StoreUnavailable) as unavailable:
                await waiting
            assert "has taken over" in str(unavailable.value.reason)
            await store.execute(batch)


def name_at(cluster: RedisCluster, node: Node) -> str:
    """The name of a value whose key is on this node."""
    names = (str(i) for i in range(1000))
    return next(name for name in names if cluster.owner(f"igw:value:s:{name}") is node)
