"""A Redis Cluster: redirections, keys that move, nodes that are lost, scans, and clear faults.

The contract suite runs on a cluster too, in `make test-long`.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.crc import key_slot
from structlog.testing import capture_logs

from gateway.errors import StoreFull, StoreUnavailable
from gateway.store import commands
from gateway.store.batch import execute
from gateway.store.blobs.redis import RedisBlobs, open_redis_blobs
from gateway.store.handshake import StoreMisconfigured
from gateway.store.protocol import Store
from gateway.store.redis.keys import Keys
from gateway.store.redis.store import open_redis_store
from gateway.store.redis.topology.cluster import ClusterMap
from tests.redis_cluster import AUTHORITY, Node, RedisCluster, run_redis_cluster
from tests.redis_server import skip_without_tls
from tests.store.test_kept_reads import kept
from tests.waiting import eventually

KEYS = Keys("igw:")
LONG = 600.0


@pytest.fixture
def cluster(redis_cluster: RedisCluster) -> RedisCluster:
    """The cluster of this test process, without data."""
    redis_cluster.flush()
    return redis_cluster


@pytest.fixture
def own_cluster(tmp_path: Path) -> Iterator[RedisCluster]:
    """A cluster whose nodes the test may kill."""
    with run_redis_cluster(tmp_path) as cluster:
        yield cluster


def set_value(name: str, value: bytes = b"1") -> commands.SetValue:
    return commands.SetValue("test", name, value, LONG)


def get_value(name: str) -> commands.GetValue:
    return commands.GetValue("test", name)


def name_at(cluster: RedisCluster, node: Node) -> str:
    """The name of a value whose key is on this node."""
    names = (str(i) for i in range(1000))
    return next(name for name in names if cluster.owner(KEYS.value("test", name)) is node)


def names_on_each(cluster: RedisCluster) -> list[str]:
    return [name_at(cluster, node) for node in cluster.masters()]


@asynccontextmanager
async def writing(store: Store, name: str) -> AsyncIterator[list[tuple[float, bool]]]:
    """Adds to a value again and again; yields when each call ended, and whether it was executed."""
    calls: list[tuple[float, bool]] = []

    async def write() -> None:
        while True:
            try:
                await execute(store, commands.AdvanceCounter("test", name, 1, 1 << 40, LONG))
                calls.append((time.monotonic(), True))
            except StoreUnavailable:
                calls.append((time.monotonic(), False))
            await asyncio.sleep(0.002)

    task = asyncio.create_task(write())
    try:
        yield calls
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_batch_of_many_slots_is_executed_in_order(cluster: RedisCluster) -> None:
    async with open_redis_store(cluster.url) as store:
        names = [str(i) for i in range(30)]
        results = await store.execute(
            [one for name in names for one in (set_value(name, name.encode()), get_value(name))]
        )
    assert results == [one for name in names for one in (True, name.encode())]


async def test_nothing_after_an_error_is_executed(cluster: RedisCluster) -> None:
    """So an entry never refers to bytes that a full node refused."""
    full, other = cluster.masters()[:2]
    refused, after = name_at(cluster, full), name_at(cluster, other)
    async with open_redis_store(cluster.url) as store:
        await store.execute([get_value(refused), get_value(after)])
        full.run("CONFIG", "SET", "maxmemory", 1)
        try:
            with pytest.raises(StoreFull):
                await store.execute([set_value(refused), get_value(refused), set_value(after)])
        finally:
            full.run("CONFIG", "SET", "maxmemory", 0)
        assert await execute(store, get_value(after)) is None


async def test_keys_that_move_one_by_one_are_found(cluster: RedisCluster) -> None:
    async with open_redis_store(cluster.url) as store:
        name = name_at(cluster, cluster.masters()[0])
        slot, target = key_slot(KEYS.value("test", name).encode()), cluster.masters()[1]
        await execute(store, set_value(name, b"before"))
        source = cluster.begin_migration(slot, target)
        assert await execute(store, get_value(name)) == b"before"
        cluster.move_keys(slot, source, target)
        assert await execute(store, get_value(name)) == b"before"  # ASK
        assert await execute(store, set_value(name, b"after"))
        cluster.end_migration(slot, source, target)
        assert await execute(store, get_value(name)) == b"after"  # MOVED
        cluster.begin_migration(slot, source)
        cluster.move_keys(slot, target, source)
        cluster.end_migration(slot, target, source)
        assert await execute(store, get_value(name)) == b"after"


async def test_books_that_are_split_between_two_nodes_are_unavailable_and_written_nowhere(
    cluster: RedisCluster,
) -> None:
    async with open_redis_store(cluster.url) as store:
        reserve = commands.Reserve(
            "p1", "w1", (), b"{}", subjects=("key:a",), amounts={"images": 1}
        )
        await execute(store, reserve)
        slot = key_slot(KEYS.books.encode())
        target = next(n for n in cluster.masters() if n is not cluster.owner(KEYS.books))
        source = cluster.begin_migration(slot, target)
        source.run(
            "MIGRATE", "127.0.0.1", target.port, KEYS.journal("p1"), 0, 1000
        )  # so a script with it and others has keys on both
        settle = commands.Settle("p1", {"images": 1}, b"{}", attempt="a")
        with pytest.raises(StoreUnavailable) as refused:
            await execute(store, settle)
        assert "moving" in str(refused.value.reason)
        # Everything else goes on.
        assert await execute(store, set_value("free"))
        cluster.move_keys(slot, source, target)
        cluster.end_migration(slot, source, target)
        settled = await execute(store, settle)
        assert settled.status == "settled"
        cluster.begin_migration(slot, source)
        cluster.move_keys(slot, target, source)
        cluster.end_migration(slot, target, source)


async def test_a_scan_returns_all_entries_although_slots_move_meanwhile(
    cluster: RedisCluster,
) -> None:
    wanted = {hashlib.sha256(b"%d" % i).hexdigest() for i in range(300)}
    async with open_redis_store(cluster.url) as store:
        slots = {0: commands.Slot("image", 0.0, b"{}")}
        await store.execute([commands.StoreImages(one, "flight", slots, LONG, 0) for one in wanted])
        found: set[str] = set()
        after: str | None = ""
        last, first, *_ = sorted(cluster.masters(), key=lambda node: node.name, reverse=True)
        moving = [one for one in wanted if cluster.owner(KEYS.entry(one)) is last][:4]
        pages = 0
        while after is not None:
            page = await execute(store, commands.ScanEntries(after, 20))
            found |= page.entries.keys()
            after, pages = page.after, pages + 1
            if moving and pages % 8 == 0:  # from the node that is read last to one before it
                slot = key_slot(KEYS.entry(moving.pop()).encode())
                if cluster.owner_of_slot(slot) is last:
                    cluster.begin_migration(slot, first)
                    cluster.move_keys(slot, last, first)
                    cluster.end_migration(slot, last, first)
    assert found == wanted


async def test_a_notification_reaches_the_subscribers_at_every_node(cluster: RedisCluster) -> None:
    async with open_redis_store(cluster.url) as one, open_redis_store(cluster.url) as other:
        await store_ready(one, other)
        for flight in "abcdef":
            async with other.watch(flight) as watch:
                publish = commands.Publish(flight, "1", b"event", LONG)
                await execute(one, publish)
                # Without a notification it would wait for longer than the test may take.
                await watch.wait(600)
                assert await execute(other, commands.ReadEvents(flight)) == [b"event"]


async def store_ready(*stores: Store) -> None:
    for store in stores:
        await execute(store, get_value("any"))


async def scan_all(blobs: RedisBlobs) -> set[str]:
    """The digests on all pages."""
    found: set[str] = set()
    after: str | None = ""
    while after is not None:
        after, page = await blobs.scan(after, 50)
        found |= page.keys()
    return found


async def test_blobs_are_spread_and_scanned(cluster: RedisCluster) -> None:
    data = {hashlib.sha256(b"%d" % i).hexdigest(): b"%d" % i for i in range(100)}
    async with open_redis_blobs(cluster.url) as blobs:
        assert isinstance(blobs, RedisBlobs)
        for digest, content in data.items():
            await blobs.put(digest, content, LONG)
        found: dict[str, int] = {}
        after: str | None = ""
        while after is not None:
            after, page = await blobs.scan(after, 10)
            found |= page
        assert found == {digest: len(content) for digest, content in data.items()}
        assert await blobs.capacity_bytes() == 3 << 30
        assert [await blobs.get(digest) for digest in data] == list(data.values())


class TestFaults:
    async def test_a_node_behind_the_url_of_a_single_redis(self, cluster: RedisCluster) -> None:
        url = f"redis://127.0.0.1:{cluster.nodes[0].port}/0"
        async with open_redis_store(url) as store:
            with pytest.raises(StoreMisconfigured, match=r"redis\+cluster://"):
                await store.check_schema()

    async def test_a_single_redis_behind_the_url_of_a_cluster(self, redis_url: str) -> None:
        url = redis_url.replace("redis://", "redis+cluster://")
        async with open_redis_store(url) as store:
            with pytest.raises(StoreMisconfigured, match=r"no node of a cluster.* redis://"):
                await store.check_schema()
            with pytest.raises(StoreUnavailable):
                await execute(store, get_value("any"))

    async def test_a_wrong_password(self, cluster: RedisCluster) -> None:
        cluster.restricted()
        url = cluster.url.replace("://", "://gateway:wrong@")
        async with open_redis_store(url) as store:
            with pytest.raises(StoreMisconfigured, match="WRONGPASS"):
                await store.check_schema()

    async def test_a_right_that_is_missing_on_one_node_alone(self, cluster: RedisCluster) -> None:
        url = cluster.restricted()
        cluster.masters()[2].run("ACL", "SETUSER", "gateway", "-zadd", "-asking")
        async with open_redis_store(url) as store:
            with pytest.raises(StoreMisconfigured, match=r"ASKING.*ZADD|ZADD.*ASKING"):
                await store.check_schema()

    @pytest.mark.parametrize(
        ("url", "expected"),
        [
            ("redis+cluster://host:7000/1", "database"),
            ("redis+cluster://host:0", "hosts"),
            ("redis+cluster://", "hosts"),
            ("redis+cluster://a,,b", "hosts"),
            ("redis+cluster://u:p/w@host:7000", "hosts|%2F"),
            ("redis+cluster://host?ssl_ca_certs=/x", "ssl=true"),
            ("redis+cluster://host?ssl=maybe", "ssl=true"),
            ("redis+cluster://host?unknown=1", "option|unknown"),
        ],
    )
    async def test_an_invalid_url(self, url: str, expected: str) -> None:
        with pytest.raises(ValueError, match=expected) as refused:
            async with open_redis_store(url):
                pass
        assert "p/w" not in str(refused.value)


@given(st.lists(st.tuples(st.integers(0, 5), st.sampled_from("abc"))))
def test_redirections_change_the_primaries_and_say_which_slots_moved(
    moves: list[tuple[int, str]],
) -> None:
    topology = ClusterMap("redis+cluster://a:1")
    changed: list[frozenset[int]] = []
    topology.on_changed.append(changed.append)
    owners: dict[int, str] = {}
    expected = []
    for slot, host in moves:
        if owners.get(slot) != (name := f"{host}:1"):
            expected.append(frozenset({slot}))
        owners[slot] = name
        topology.move(slot, name)
        assert topology.primaries == sorted(set(owners.values()))
        assert topology.owner(slot) == name
    assert changed == expected


def has_good_replica(node: Node) -> bool:
    return bool(node.run("INFO", "replication")["min_slaves_good_slaves"])


async def test_a_cluster_is_as_safe_as_its_least_safe_master(cluster: RedisCluster) -> None:
    async with open_redis_store(cluster.url) as store:
        await store_ready(store)
        assert not (await execute(store, commands.Inspect())).needs_replica
        needing = cluster.masters()
        try:
            for i, node in enumerate(needing):
                node.run("CONFIG", "SET", "min-replicas-to-write", 1)
                # The node counts its replicas once a second, and refuses scripts until then.
                await eventually(lambda node=node: has_good_replica(node))
                facts = await execute(store, commands.Inspect())
                assert facts.needs_replica == (i == len(needing) - 1)
        finally:
            cluster.everywhere("CONFIG", "SET", "min-replicas-to-write", 0)


async def test_scripts_that_cannot_be_loaded_again_are_executed_once_they_can(
    cluster: RedisCluster,
) -> None:
    url, node = cluster.restricted(), cluster.masters()[0]
    advance = commands.AdvanceCounter("test", name_at(cluster, node), 1, 1 << 40, LONG)
    async with open_redis_store(url) as store:
        first = await execute(store, advance)
        node.run("ACL", "SETUSER", "gateway", "-script|load")
        node.run("SCRIPT", "FLUSH")
        call = asyncio.create_task(execute(store, advance))
        await asyncio.sleep(0.3)
        assert not call.done()
        node.run("ACL", "SETUSER", "gateway", "+script|load")
        assert await call == first + 1


@pytest.mark.long
async def test_tls_and_announced_host_names(tmp_path: Path) -> None:
    skip_without_tls()
    with run_redis_cluster(tmp_path, is_tls=True) as cluster:
        one = f"redis+cluster://localhost:{cluster.nodes[0].port}/0?ssl=true"
        async with open_redis_store(one) as store:
            with pytest.raises(StoreMisconfigured, match="not trusted"):
                await store.check_schema()
        async with open_redis_store(f"{one}&ssl_ca_certs={AUTHORITY}") as store:
            await store.check_schema()
            names = names_on_each(cluster)
            for name in names:
                assert await execute(store, set_value(name))
            slot = key_slot(KEYS.value("test", names[0]).encode())
            target = cluster.owner(KEYS.value("test", names[1]))
            source = cluster.begin_migration(slot, target)
            # The key that is absent is asked of the target, by its name.
            source.run("DEL", KEYS.value("test", names[0]))
            assert await execute(store, set_value(names[0], b"asked"))
            cluster.end_migration(slot, source, target)
            assert await execute(store, get_value(names[0])) == b"asked"
            async with store.watch("flight") as watch:
                await execute(store, commands.Publish("flight", "1", b"event", LONG))
                await watch.wait(600)


# ── outages in the log ──────────────────────────────────────────────────────────────────────────


def outages(logs: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """The lines about outages: what happened, and the address of the node."""
    events = {"store_unavailable": "begins", "store_available": "ends"}
    return [
        (events[line["event"]], line["store"].rpartition("@")[2].removeprefix("redis://"))
        for line in logs
        if line["event"] in events
    ]


@contextmanager
def refusing_writes(node: Node) -> Iterator[None]:
    """The node wants more replicas than it has."""
    node.run("CONFIG", "SET", "min-replicas-to-write", 9)
    try:
        yield
    finally:
        node.run("CONFIG", "SET", "min-replicas-to-write", 0)


async def make_unavailable(store: Store, name: str) -> None:
    """Writes a value until that fails."""

    async def has_failed() -> bool:
        try:
            await execute(store, set_value(name))
        except StoreUnavailable:
            return True
        return False

    await eventually(has_failed)


async def test_an_outage_that_broke_no_connection_ends_in_the_log_without_a_further_call(
    cluster: RedisCluster,
) -> None:
    node = cluster.masters()[0]
    name, address = name_at(cluster, node), f"{node.name}/0"
    with capture_logs() as logs:
        async with open_redis_store(cluster.url) as store:
            await store_ready(store)
            with refusing_writes(node):
                await make_unavailable(store, name)
                assert outages(logs) == [("begins", address)]
            await eventually(lambda: ("ends", address) in outages(logs))
    assert outages(logs) == [("begins", address), ("ends", address)]


async def tried_twice(node: Node) -> None:
    """Returns once a node that refuses `DEL` has refused it twice more."""

    def refused() -> int:
        stats = node.run("INFO", "commandstats").get("cmdstat_del", {})
        return int(stats.get("rejected_calls", 0))

    due = refused() + 2
    await eventually(lambda: refused() >= due)


async def test_an_outage_of_a_node_that_refuses_commands_is_its_own_and_lasts(
    cluster: RedisCluster, quick_outages: None
) -> None:
    """The last of the nodes, because errors of unknown nodes are those of the first."""
    node = max(cluster.masters(), key=lambda node: node.name)
    name, address, url = name_at(cluster, node), f"{node.name}/0", cluster.restricted()
    with capture_logs() as logs:
        async with open_redis_store(url) as store:
            await store_ready(store)
            node.run("ACL", "SETUSER", "gateway", "-@write", "-evalsha")
            try:
                with pytest.raises(StoreUnavailable) as refused:
                    await execute(store, set_value(name))
                for _ in range(2):  # longer than an outage is quiet before it ends
                    await tried_twice(node)
                assert outages(logs) == [("begins", address)]
            finally:
                cluster.restricted()
            await eventually(lambda: ("ends", address) in outages(logs))
    assert node.name in str(refused.value.reason)


async def test_an_outage_of_a_node_that_refuses_writes_lasts_over_a_new_connection(
    cluster: RedisCluster, quick_outages: None
) -> None:
    node = cluster.masters()[0]
    name, address = name_at(cluster, node), f"{node.name}/0"
    with capture_logs() as logs:
        async with open_redis_store(cluster.url) as store:
            await store_ready(store)
            with refusing_writes(node):
                await make_unavailable(store, name)
                node.run("CLIENT", "KILL", "TYPE", "normal")
                await tried_twice(node)
                assert outages(logs) == [("begins", address)]


async def test_requests_of_a_closed_store_connect_to_no_node(cluster: RedisCluster) -> None:
    async with open_redis_store(cluster.url) as store:
        await execute(store, set_value(name_at(cluster, cluster.masters()[0])))
    sent = [execute(store, set_value(name)) for name in names_on_each(cluster)]
    for outcome in await asyncio.gather(*sent, return_exceptions=True):
        assert isinstance(outcome, StoreUnavailable)
        assert "the store is closed" in str(outcome.reason)
    assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.mark.long
class TestOutagesInTheLog:
    async def test_of_a_node_that_returns_without_a_further_call(
        self, own_cluster: RedisCluster
    ) -> None:
        own_cluster.everywhere("CONFIG", "SET", "cluster-replica-no-failover", "yes")
        own_cluster.everywhere("CONFIG", "SET", "cluster-require-full-coverage", "no")
        node = own_cluster.masters()[0]
        name, address = name_at(own_cluster, node), f"{node.name}/0"
        with capture_logs() as logs:
            async with open_redis_store(own_cluster.url) as store:
                await store_ready(store)
                node.kill()
                await make_unavailable(store, name)
                node.start()
                await eventually(lambda: ("ends", address) in outages(logs))
        assert [each for each, _ in outages(logs)].count("ends") == 1
        assert outages(logs)[-1] == ("ends", address)

    async def test_of_a_node_that_has_a_successor_and_never_returns(
        self, own_cluster: RedisCluster
    ) -> None:
        own_cluster.everywhere("CONFIG", "SET", "cluster-node-timeout", 4000)
        node = own_cluster.masters()[0]
        name, address = name_at(own_cluster, node), f"{node.name}/0"
        with capture_logs() as logs:
            async with open_redis_store(own_cluster.url) as store:
                await store_ready(store)
                await kept(store, get_value(name))
                node.kill()
                await make_unavailable(store, name)
                await eventually(lambda: ("ends", address) in outages(logs))
                assert await execute(store, set_value(name))
                lost = [line["event"] for line in logs if line["event"].startswith("tracking_")]
        assert {store for _, store in outages(logs)} == {address}
        assert [each for each, _ in outages(logs)].count("ends") == 1
        assert outages(logs)[-1] == ("ends", address)
        assert set(lost) == {"tracking_lost", "tracking_works"}

    async def test_of_a_cluster_whose_map_cannot_be_read(self, own_cluster: RedisCluster) -> None:
        for node in own_cluster.nodes:
            node.freeze()
        with capture_logs() as logs:
            async with open_redis_store(own_cluster.url) as store:
                with pytest.raises(StoreUnavailable):
                    await execute(store, get_value("v"))
                for node in own_cluster.nodes:
                    node.thaw()
                await eventually(lambda: "ends" in dict(outages(logs)))
                where = {line["store"] for line in logs if line["event"] == "store_available"}
                assert where == {store.name}


# ── lost nodes ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.long
@pytest.mark.timed
class TestLostNodes:
    async def test_a_replica_takes_over_from_a_killed_master(
        self, own_cluster: RedisCluster
    ) -> None:
        lost, *others = own_cluster.masters()
        async with open_redis_store(own_cluster.url) as store:
            await store_ready(store)
            mine, theirs = name_at(own_cluster, lost), name_at(own_cluster, others[0])
            async with writing(store, mine) as calls, writing(store, theirs) as other_calls:
                await asyncio.sleep(0.5)
                killed_at = time.monotonic()
                lost.kill()
                await eventually(lambda: any(ok and at > killed_at + 0.3 for at, ok in calls))
                back_at = next(at for at, ok in calls if ok and at > killed_at + 0.05)
                await asyncio.sleep(0.5)
            assert back_at - killed_at < 5
            # Those of other nodes fail only while no majority has agreed.
            slowest = max(b[0] - a[0] for a, b in pairwise(other_calls))
            failed = sum(not ok for _, ok in other_calls)
            print(  # noqa: T201 - shown by `pytest -s`
                f"back after {back_at - killed_at:.2f} s; others: {failed} failed, at most"
                  f" {slowest:.2f} s apart")  # fmt: skip
            assert failed == 0

    async def test_a_master_that_hangs_delays_no_other_slots(
        self, own_cluster: RedisCluster
    ) -> None:
        hanging, *others = own_cluster.masters()
        own_cluster.everywhere("CONFIG", "SET", "cluster-replica-no-failover", "yes")
        own_cluster.everywhere("CONFIG", "SET", "cluster-require-full-coverage", "no")
        async with open_redis_store(own_cluster.url) as store:
            await store_ready(store)
            mine, theirs = name_at(own_cluster, hanging), name_at(own_cluster, others[0])
            async with writing(store, mine) as calls, writing(store, theirs) as other_calls:
                await asyncio.sleep(0.3)
                hanging.freeze()
                await asyncio.sleep(5)
                hanging.thaw()
                thawed_at = time.monotonic()
                await eventually(lambda: any(ok and at > thawed_at for at, ok in calls))
            assert not all(ok for _, ok in calls)
            assert all(ok for _, ok in other_calls)
            slowest = max(b[0] - a[0] for a, b in pairwise(other_calls))
            assert slowest < 1

    async def test_what_is_asked_of_all_nodes_waits_for_one_that_is_back_soon(
        self, own_cluster: RedisCluster
    ) -> None:
        own_cluster.everywhere("CONFIG", "SET", "cluster-replica-no-failover", "yes")
        own_cluster.everywhere("CONFIG", "SET", "cluster-require-full-coverage", "no")
        lost = max(own_cluster.masters(), key=lambda node: node.name)
        async with (
            open_redis_store(own_cluster.url) as store,
            open_redis_blobs(own_cluster.url) as blobs,
        ):
            await execute(store, commands.Inspect())
            digests = {hashlib.sha256(b"%d" % i).hexdigest() for i in range(20)}
            for digest in digests:
                await blobs.put(digest, b"data", LONG)
            on_it = {one for one in digests if own_cluster.owner(KEYS.blob(one)) is lost}
            lost.kill()
            reads = [
                asyncio.create_task(execute(store, commands.Inspect())),
                asyncio.create_task(blobs.capacity_bytes()),
                asyncio.create_task(scan_all(blobs)),
            ]
            await asyncio.sleep(0.5)
            assert not any(read.done() for read in reads)
            lost.start()
            facts, capacity, found = await asyncio.gather(*reads)
            assert (facts.is_known, capacity) == (True, 3 << 30)
            assert found == digests - on_it  # it keeps nothing

            lost.kill()
            for read in (execute(store, commands.Inspect()), scan_all(blobs)):
                with pytest.raises(StoreUnavailable) as unavailable:
                    await read
                assert f"The node {lost.name} of the Redis Cluster" in str(unavailable.value.reason)

    async def test_a_scan_goes_on_while_a_replica_takes_over(
        self, own_cluster: RedisCluster
    ) -> None:
        wanted = {hashlib.sha256(b"%d" % i).hexdigest() for i in range(200)}
        lost = own_cluster.masters()[1]
        async with open_redis_blobs(own_cluster.url) as blobs:
            for digest in wanted:
                await blobs.put(digest, b"data", LONG)
            for master in own_cluster.masters():
                assert master.run("WAIT", 1, 1000) == 1
            assert await scan_all(blobs) == wanted
            own_cluster.replica_of(lost).run("CLUSTER", "FAILOVER")
            while lost.is_master():
                assert await scan_all(blobs) == wanted
            lost.kill()
            assert await scan_all(blobs) == wanted

    async def test_a_failover_by_hand_fails_no_request(self, own_cluster: RedisCluster) -> None:
        master = own_cluster.masters()[0]
        async with open_redis_store(own_cluster.url) as store:
            await store_ready(store)
            async with writing(store, name := name_at(own_cluster, master)) as calls:
                await asyncio.sleep(0.2)
                own_cluster.replica_of(master).run("CLUSTER", "FAILOVER")
                await eventually(lambda: not master.is_master())
                await asyncio.sleep(1)
            assert all(ok for _, ok in calls)
            count = await execute(store, commands.AdvanceCounter("test", name, 0, 1 << 40, LONG))
            assert count in (len(calls), len(calls) + 1)

    async def test_notifications_come_from_another_node_after_a_loss(
        self, own_cluster: RedisCluster
    ) -> None:
        async with open_redis_store(own_cluster.url) as store:
            await store_ready(store)
            async with store.watch("flight") as watch:
                for lost in own_cluster.masters()[:1]:
                    lost.kill()
                async with asyncio.timeout(15):
                    while await _is_silent(store, watch):
                        pass


async def _is_silent(store: Store, watch: object) -> bool:
    with suppress(StoreUnavailable):
        await execute(store, commands.Notify("flight"))
        began = time.monotonic()
        await watch.wait(1)  # type: ignore[attr-defined]
        return time.monotonic() - began > 0.9
    return True
