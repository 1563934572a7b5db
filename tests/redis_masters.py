"""Connections of tests to the servers that hold a store's data, whatever their topology."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import redis
from redis.cluster import RedisCluster

from gateway.store.redis.topology.cluster_url import is_cluster_url, parse_cluster_url
from gateway.store.redis.topology.sentinel_url import parse_sentinel_url
from gateway.store.redis.urls import SENTINEL_SCHEME


@contextmanager
def open_masters(url: str) -> Iterator[list[Any]]:
    """A connection to each master. A key of a cluster is on one of them.

    Behind sentinels and in a cluster it is for the default user, who needs no password in tests.
    The user of a gateway lacks commands that tests need, such as KEYS.
    """
    with ExitStack() as stack:
        if url.startswith(f"{SENTINEL_SCHEME}://"):
            found = [_elected_master(url)]
        elif is_cluster_url(url):
            found = _primaries(url)
        else:
            found = [redis.Redis.from_url(url)]
        yield [stack.enter_context(client) for client in found]


@contextmanager
def open_owner(url: str, key: str) -> Iterator[Any]:
    """A connection to the master that has the key, as `open_masters`."""
    if not is_cluster_url(url):
        with open_masters(url) as (master,):
            yield master
        return
    first = parse_cluster_url(url).hosts[0]
    with RedisCluster(first.host, first.port) as cluster:
        node = cluster.get_node_from_key(key)
        with redis.Redis(node.host, node.port) as owner:
            yield owner


def delete_matching(url: str, *patterns: str) -> None:
    """Deletes the keys that match one of the patterns, on every master."""
    with open_masters(url) as masters:
        for master in masters:
            # One at a time, because the keys of a cluster's node are in several slots.
            for key in (key for pattern in patterns for key in master.keys(pattern)):
                master.delete(key)


def _elected_master(url: str) -> Any:
    parsed = parse_sentinel_url(url)
    first = parsed.sentinels[0]
    with redis.Redis(first.host, first.port, protocol=2) as sentinel:
        host, port = sentinel.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", parsed.service)
    return redis.Redis(host.decode(), int(port))


def _primaries(url: str) -> list[Any]:
    first = parse_cluster_url(url).hosts[0]
    with RedisCluster(first.host, first.port) as cluster:
        return [redis.Redis(node.host, node.port) for node in cluster.get_primaries()]
