"""Which kind of topology a URL names, and the check of a URL before the first connection."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from gateway.store.redis.pools import check_options
from gateway.store.redis.topology.addresses import Addresses
from gateway.store.redis.topology.cluster_url import is_cluster_url, parse_cluster_url
from gateway.store.redis.topology.sentinel import SentinelMaster
from gateway.store.redis.topology.sentinel_url import parse_sentinel_url
from gateway.store.redis.topology.single import SingleServer
from gateway.store.redis.urls import SENTINEL_SCHEME, is_complete


def find_addresses(url: str) -> Addresses:
    """The addresses behind a URL of a Redis; nothing is sent yet.

    Raises `ValueError` for a URL that cannot be used; its message never quotes the URL.
    """
    if url.startswith(f"{SENTINEL_SCHEME}://"):
        try:
            return SentinelMaster(url)
        except ValueError as error:
            raise ValueError(f"The Redis URL should be {error}.") from None
    return SingleServer(url)


def check_redis_url(url: str) -> None:
    """Raises `ValueError` with what a valid URL looks like; its message never quotes the URL."""
    if url.startswith(f"{SENTINEL_SCHEME}://"):
        parsed = parse_sentinel_url(url)
        check_options(parsed.master_url)
        check_options(parsed.sentinel_url)
        return
    if is_cluster_url(url):
        cluster = parse_cluster_url(url)
        check_options(cluster.node_url(cluster.hosts[0]))
        return
    if not is_complete(urlsplit(url)) or re.search(r"\s", url):
        raise ValueError(
            "redis://user:password@host:6379/0 or unix:///path?db=0, with signs like / # ? and @ in"
            " a password written as %2F %23 %3F and %40"
        )
    check_options(url)
