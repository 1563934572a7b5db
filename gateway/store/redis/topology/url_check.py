"""The check of a URL before the first connection."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import urlsplit

from redis.exceptions import RedisError

from gateway.store.redis.pools import create_pool
from gateway.store.redis.topology.cluster_url import is_cluster_url, parse_cluster_url
from gateway.store.redis.topology.sentinel_url import parse_sentinel_url
from gateway.store.redis.urls import SENTINEL_SCHEME, is_complete


def check_redis_url(url: str) -> None:
    """Raises `ValueError` with what a valid URL looks like; its message never quotes the URL."""
    if url.startswith(f"{SENTINEL_SCHEME}://"):
        parsed = parse_sentinel_url(url)
        _check_options(parsed.master_url)
        _check_options(parsed.sentinel_url)
        return
    if is_cluster_url(url):
        cluster = parse_cluster_url(url)
        _check_options(cluster.node_url(cluster.hosts[0]))
        return
    if not is_complete(urlsplit(url)) or re.search(r"\s", url):
        raise ValueError(
            "redis://user:password@host:6379/0 or unix:///path?db=0, with signs like / # ? and @ in"
            " a password written as %2F %23 %3F and %40"
        )
    _check_options(url)


def _check_options(url: str) -> None:
    try:
        connection: Any = create_pool(url).make_connection()  # type: ignore[no-untyped-call]
    except (TypeError, ValueError, RedisError):
        raise ValueError(
            "only options that redis-py knows, such as ?ssl_ca_certs=/path/ca.pem"
        ) from None
    if hasattr(connection, "ssl_context"):
        try:
            connection.ssl_context.get()
        except (OSError, ValueError) as fault:  # an error of TLS is an `OSError`
            reason = getattr(fault, "strerror", None) or str(fault)
            raise ValueError(
                f"files in ssl_ca_certs, ssl_certfile and ssl_keyfile that can be read: {reason}"
            ) from None
