"""The client of the Redis at a URL: of one server, or of a cluster."""

from __future__ import annotations

from collections.abc import Sequence

from gateway.store.redis.client import RedisClient
from gateway.store.redis.cluster.client import ClusterClient
from gateway.store.redis.keys import Keys
from gateway.store.redis.scripts import Script
from gateway.store.redis.topology.cluster_url import is_cluster_url
from gateway.store.redis.topology.opening import find_addresses

Client = RedisClient | ClusterClient


def create_client(
    url: str,
    *,
    keys: Keys,
    scripts: Sequence[Script] = (),
    may_create: bool = True,
    holds_books: bool = False,
) -> Client:
    """A client that is not connected yet; see `RedisClient`.

    Raises `ValueError` for a URL that cannot be used; its message never quotes the URL.
    """
    if is_cluster_url(url):
        return ClusterClient(
            url, keys=keys, scripts=scripts, may_create=may_create, holds_books=holds_books
        )
    return RedisClient(
        find_addresses(url),
        keys=keys,
        scripts=scripts,
        may_create=may_create,
        holds_books=holds_books,
    )
