"""How long purchases wait while another Redis server takes over.

Two workers answer hits, and eight clients buy one image after the other. The figure is the longest
time without an answer to a purchase.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

from gateway.store.redis.keys import Keys
from tests.redis_cluster import run_redis_cluster
from tests.sentinel_servers import run_sentinel_servers
from tests.store_traffic import traffic

AFTERWARDS_SECONDS = 6

_SAFE = ("--min-replicas-to-write", "1", "--min-replicas-max-lag", "2")
_BOOKS = Keys("igw:").books

_Fault = Callable[[], Awaitable[object]]
_Deployment = Callable[[Path], AbstractAsyncContextManager[tuple[str, _Fault]]]
"""Starts servers in a folder; yields their URL and what causes the fault."""


def measure_recovery(folder: Path) -> dict[str, float]:
    """Seconds by fault. Raises `AssertionError` if a purchase was lost or made twice."""
    return {
        name: _measure(folder / str(number), name, deployment)
        for number, (name, deployment) in enumerate(_FAULTS.items())
    }


def _measure(folder: Path, name: str, deployment: _Deployment) -> float:
    print(f"{name} …", file=sys.stderr)  # noqa: T201
    folder.mkdir(parents=True)
    return asyncio.run(_longest_gap(folder, deployment))


async def _longest_gap(folder: Path, deployment: _Deployment) -> float:
    async with deployment(folder) as (url, fault), traffic(folder / "gateway", url) as now:
        began = time.monotonic()
        await fault()
        await asyncio.sleep(AFTERWARDS_SECONDS)
        seconds = now.buyers.longest_gap(began)
        await now.settle()
    return seconds


@asynccontextmanager
async def _sentinel_killed(folder: Path) -> AsyncIterator[tuple[str, _Fault]]:
    with run_sentinel_servers(folder / "redis") as servers:
        yield servers.url, lambda: asyncio.to_thread(servers.master.kill)


@asynccontextmanager
async def _sentinel_ordered(folder: Path) -> AsyncIterator[tuple[str, _Fault]]:
    with run_sentinel_servers(folder / "redis") as servers:
        yield servers.url, lambda: asyncio.to_thread(servers.fail_over)


@asynccontextmanager
async def _cluster_killed(folder: Path) -> AsyncIterator[tuple[str, _Fault]]:
    with run_redis_cluster(folder, *_SAFE, durable=True) as cluster:
        books = cluster.owner(_BOOKS)

        async def fault() -> None:
            books.kill()
            await asyncio.sleep(1)
            # As a supervisor would, because the new master refuses writes until it has a replica.
            books.start()

        yield cluster.url, fault


@asynccontextmanager
async def _cluster_ordered(folder: Path) -> AsyncIterator[tuple[str, _Fault]]:
    with run_redis_cluster(folder, *_SAFE, durable=True) as cluster:
        replica = cluster.replica_of(cluster.owner(_BOOKS))
        yield cluster.url, lambda: asyncio.to_thread(replica.run, "CLUSTER", "FAILOVER")


_FAULTS: dict[str, _Deployment] = {
    "Sentinel: the master is killed": _sentinel_killed,
    "Sentinel: `SENTINEL FAILOVER`": _sentinel_ordered,
    "cluster: the master of the books is killed": _cluster_killed,
    "cluster: `CLUSTER FAILOVER` of the books": _cluster_ordered,
}
