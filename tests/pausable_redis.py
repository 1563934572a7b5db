"""A Redis of any topology that a test can pause and resume."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.redis_cluster import Node as ClusterNode
from tests.redis_cluster import run_redis_cluster
from tests.redis_server import run_durable_redis
from tests.sentinel_servers import Node, run_sentinel_servers


@dataclass(frozen=True)
class PausableRedis:
    """A Redis all of whose servers can be paused, and so cannot replace each other meanwhile."""

    url: str
    freeze: Callable[[], None]
    thaw: Callable[[], None]


@contextmanager
def run_pausable_redis(topology: str, folder: Path) -> Iterator[PausableRedis]:
    """A single server, or those of a topology. None of them is shared with another test."""
    if topology == "redis":
        with run_durable_redis(folder) as server:
            yield PausableRedis(server.url, server.freeze, server.thaw)
    elif topology == "sentinel":
        with run_sentinel_servers(folder) as servers:
            found = [*servers.sentinels, *servers.servers]
            yield PausableRedis(servers.url, _each(Node.stop, found), _each(Node.go_on, found))
    else:
        with run_redis_cluster(folder) as cluster:
            nodes = cluster.nodes
            yield PausableRedis(
                cluster.url, _each(ClusterNode.freeze, nodes), _each(ClusterNode.thaw, nodes)
            )


def _each(call: Callable[[Any], None], nodes: Sequence[Any]) -> Callable[[], None]:
    def call_each() -> None:
        for node in nodes:
            call(node)

    return call_each
