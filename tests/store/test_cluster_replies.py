"""Whatever the nodes of a cluster answer, each command has its own reply and is executed once."""

from __future__ import annotations

import asyncio
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from redis import exceptions as redis_errors
from structlog.testing import capture_logs

from gateway.errors import StoreUnavailable
from gateway.store.handshake import StoreMisconfigured
from gateway.store.redis import client
from gateway.store.redis.client import NotReached
from gateway.store.redis.cluster import stage as cluster_stage
from gateway.store.redis.cluster.client import ClusterClient
from gateway.store.redis.cluster.order import find_stages
from gateway.store.redis.commands.encoding import RedisCommand, unchanged
from gateway.store.redis.faults import node_of
from gateway.store.redis.keys import Keys
from gateway.store.redis.scripts import SCRIPTS
from gateway.store.redis.topology import cluster as topology
from tests.examples import examples
from tests.faulty_cluster import BREAKS, FINAL, UNEXECUTED, Fault, FaultyCluster, run_faulty_cluster
from tests.waiting import eventually

KINDS = ("read_entry", "admit", "untrack", "delete_hits", "set_value", "store_images", "settle")
"""Commands whose order in a batch does not matter, and commands whose order does."""

NODES = st.integers(0, 2)

FAULTS = st.dictionaries(
    NODES,
    st.lists(
        st.builds(
            Fault,
            st.sampled_from(
                ["none", "moves", "lies", "asks", "nowhere", *UNEXECUTED, *FINAL, *BREAKS]
            ),
            NODES,
        ),
        max_size=6,
    ),
)

COMMANDS = st.lists(
    st.tuples(st.sampled_from("abcdefgh"), st.sampled_from(KINDS)), min_size=1, max_size=12
)


@pytest.fixture(scope="module", autouse=True)
def hurried() -> Iterator[None]:
    """Pauses as short as the simulated nodes' elections."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cluster_stage, "ELECTION_SECONDS", 0.002)
        patch.setattr(cluster_stage, "MIGRATION_SECONDS", 0.002)
        patch.setattr(client, "RETRY_SECONDS", 0.002)
        patch.setattr(topology, "MIN_REFRESH_SECONDS", 0.01)
        yield


def is_broken(faults: dict[int, list[Fault]]) -> bool:
    """Whether a node may close a connection."""
    return any(fault.kind in BREAKS for each in faults.values() for fault in each)


def check_reply(reply: Any, one: bytes, executed: Counter[bytes]) -> None:
    if isinstance(reply, redis_errors.RedisError):
        assert isinstance(reply, (redis_errors.ResponseError, NotReached))
        assert isinstance(reply, NotReached) or (node_of(reply) or "").startswith("127.0.0.1:")
        assert executed[one] == 0
    else:
        assert (reply, executed[one]) == (one, 1)


@settings(max_examples=examples(120), deadline=None, suppress_health_check=list(HealthCheck))
@given(COMMANDS, FAULTS)
@example([("a", "settle")] * 3, {0: [Fault("asks", 1)] * 3, 1: [Fault("noscript")] * 3})
async def test_commands_sent_together(
    commands: Sequence[tuple[str, str]], faults: dict[int, list[Fault]]
) -> None:
    ids = [b"%d" % i for i in range(len(commands))]
    async with run_faulty_cluster(faults) as cluster:
        opened = ClusterClient(cluster.url, keys=Keys("igw:"))
        async with opened.open():
            raw = [(b"DO", key.encode(), one) for (key, _), one in zip(commands, ids, strict=True)]
            try:
                replies = await opened.execute(raw)
            except StoreUnavailable:
                assert is_broken(faults)
                replies = None
            executed = Counter(cluster.executed)
            assert set(executed.values()) <= {1}
            if replies is not None:
                for reply, one in zip(replies, ids, strict=True):
                    check_reply(reply, one, executed)
            if not any(faults.values()):
                for key in {key for key, _ in commands}:
                    of_key = [o for (k, _), o in zip(commands, ids, strict=True) if k == key]
                    assert [one for one in cluster.executed if one in of_key] == of_key
        # Also connections to nodes that lost their slots, or that only got ASKING.
        await eventually(lambda: not cluster.connections)


@settings(max_examples=examples(120), deadline=None, suppress_health_check=list(HealthCheck))
@given(COMMANDS, FAULTS)
async def test_a_batch_in_order(
    commands: Sequence[tuple[str, str]], faults: dict[int, list[Fault]]
) -> None:
    ids = [b"%d" % i for i in range(len(commands))]
    batch = [
        RedisCommand(
            ("DO", key, one), read=unchanged, script=SCRIPTS["set_value"], keys=(key,), name=kind
        )
        for (key, kind), one in zip(commands, ids, strict=True)
    ]
    stages = [ids[stage.start : stage.stop] for stage in find_stages(batch)]
    async with run_faulty_cluster(faults) as cluster:
        opened = ClusterClient(cluster.url, keys=Keys("igw:"))
        async with opened.open():
            try:
                replies = await opened.run(batch)
            except StoreUnavailable:
                assert is_broken(faults)
                replies = None
            executed = Counter(cluster.executed)
            assert set(executed.values()) <= {1}
            stage_of = {one: i for i, stage in enumerate(stages) for one in stage}
            in_order = [stage_of[one] for one in cluster.executed]
            assert in_order == sorted(in_order)
            if replies is None:
                # The stages before the last one that executed anything were executed whole.
                done = max(in_order, default=0)
                assert all(executed[one] for stage in stages[:done] for one in stage)
                return
            for reply, one in zip(replies, ids, strict=True):
                check_reply(reply, one, executed)
            by_id = dict(zip(ids, replies, strict=True))
            failed = [
                i
                for i, stage in enumerate(stages)
                if any(isinstance(by_id[one], redis_errors.RedisError) for one in stage)
            ]
            for stage in stages[failed[0] + 1 :] if failed else []:
                assert all(isinstance(by_id[one], NotReached) for one in stage)
            for stage in stages[: failed[0] + 1] if failed else stages:
                assert not any(isinstance(by_id[one], NotReached) for one in stage)
        await eventually(lambda: not cluster.connections)


async def test_the_connection_to_a_node_without_slots_is_closed() -> None:
    commands = [(b"DO", b"%d" % i, b"%d" % i) for i in range(30)]
    async with run_faulty_cluster({}) as cluster:
        opened = ClusterClient(cluster.url, keys=Keys("igw:"))
        async with opened.open():
            await opened.execute(commands)
            assert set(cluster.connections.values()) == {0, 1, 2}
            cluster.owners = [min(owner, 1) for owner in cluster.owners]
            await opened.execute(commands)
            await eventually(lambda: 2 not in cluster.connections.values())
            assert set(opened.nodes()) == {f"127.0.0.1:{port}" for port in cluster.ports[:2]}
            assert set(cluster.connections.values()) == {0, 1}


@asynccontextmanager
async def opened_on(
    cluster: FaultyCluster, *, url: str | None = None
) -> AsyncIterator[ClusterClient]:
    opened = ClusterClient(url or cluster.url, keys=Keys("igw:"))
    async with opened.open():
        yield opened


async def test_a_cluster_that_has_no_slots_yet() -> None:
    async with run_faulty_cluster({}) as cluster, opened_on(cluster) as opened:
        cluster.has_slots = False
        with pytest.raises(StoreUnavailable) as unavailable:
            await opened.execute([(b"DO", b"a", b"1")])
        assert unavailable.value.reason == "The Redis Cluster has no slots."
        with pytest.raises(StoreMisconfigured, match="has no slots"):
            await opened.check(())
        cluster.has_slots = True
        assert await opened.execute([(b"DO", b"a", b"1")]) == [b"1"]
        # The same later on, after all nodes were reset.
        cluster.has_slots = False
        await opened.topology.refresh()
        with pytest.raises(StoreUnavailable):
            await opened.execute([(b"DO", b"a", b"2")])
        cluster.has_slots = True
        assert await opened.execute([(b"DO", b"a", b"3")]) == [b"3"]


async def test_an_outage_of_a_whole_cluster_is_logged_until_commands_can_be_sent(
    quick_outages: None,
) -> None:
    async with run_faulty_cluster({}) as cluster:
        good = cluster.handshake
        for has_slots, handshake in ((False, good), (True, b"+99\r\n")):
            async with opened_on(cluster) as opened:
                cluster.has_slots, cluster.handshake = has_slots, handshake
                with capture_logs() as logs:
                    with pytest.raises(StoreUnavailable):
                        await opened.execute([(b"DO", b"a", b"1")])
                    await asyncio.sleep(0.6)  # longer than an outage is quiet before it ends
                    assert [line["event"] for line in logs] == ["store_unavailable"]
                    cluster.has_slots, cluster.handshake = True, b"-ERR WRONGTYPE\r\n"
                    await asyncio.sleep(0.3)
                    cluster.handshake = good
                    await eventually(lambda logs=logs: len(logs) > 1)  # type: ignore[misc]
                assert [line["event"] for line in logs] == ["store_unavailable", "store_available"]
                assert {line["store"] for line in logs} == {opened.location}


@pytest.mark.parametrize("announced", [b"?", b"a@b", b"a/b", b"a b", None])
async def test_nodes_that_are_announced_without_an_address(announced: bytes | None) -> None:
    async with run_faulty_cluster({}) as cluster, opened_on(cluster) as opened:
        cluster.announced = announced
        with pytest.raises(StoreUnavailable) as unavailable:
            await opened.execute([(b"DO", b"a", b"1")])
        assert "cluster-announce-hostname" in str(unavailable.value.reason)
        with pytest.raises(StoreMisconfigured, match=r"announces .* cluster-announce-hostname"):
            await opened.check(())
        cluster.announced = b"127.0.0.1"
        assert await opened.execute([(b"DO", b"a", b"1")]) == [b"1"]


async def test_without_an_announced_address_the_only_host_of_the_url_is_used() -> None:
    async with run_faulty_cluster({}) as cluster:
        cluster.announced = None
        url = f"redis+cluster://127.0.0.1:{cluster.ports[1]}/0"
        async with opened_on(cluster, url=url) as opened:
            commands = [(b"DO", b"%d" % i, b"%d" % i) for i in range(30)]
            assert await opened.execute(commands) == [one for _, _, one in commands]


@pytest.mark.timed
async def test_closing_does_not_wait_for_nodes_that_hang() -> None:
    """The client waits 0.7 s for each node, one after the other."""
    with ExitStack() as stack:
        silent = [stack.enter_context(socket.socket()) for _ in range(8)]
        for each in silent:
            each.bind(("127.0.0.1", 0))
            each.listen()  # the kernel accepts connections, and nothing answers
        hosts = ",".join(f"127.0.0.1:{each.getsockname()[1]}" for each in silent)
        opened = ClusterClient(f"redis+cluster://{hosts}/0", keys=Keys("igw:"))
        async with opened.open():
            reading = asyncio.create_task(opened.execute([(b"DO", b"a", b"1")]))
            await asyncio.sleep(0.2)
            began = time.monotonic()
        assert time.monotonic() - began < 3
        with pytest.raises(StoreUnavailable):
            await reading
