"""Connections to the Redis at a URL."""

from __future__ import annotations

from typing import Final

from redis.asyncio import ConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.driver_info import DriverInfo

from gateway.store.redis.urls import INVALID_URL, TIMEOUT_SECONDS

_DRIVER_INFO: Final = DriverInfo()
"""What Redis' `CLIENT LIST` shows."""


def create_pool(url: str) -> ConnectionPool:
    """A factory of connections; it keeps none. Raises `ValueError` for an invalid option."""
    try:
        pool = ConnectionPool.from_url(url)
    except ValueError:
        raise ValueError(INVALID_URL) from None
    # Afterwards, because options of the URL would replace them.
    pool.connection_kwargs |= {
        # redis-py would put `wait_for` around every write, which on Python 3.11 can swallow a
        # cancellation. Each use of a connection has one deadline around all of it instead.
        "socket_timeout": None,
        "socket_connect_timeout": TIMEOUT_SECONDS,
        # Retries inside redis-py would use up the one deadline of the batch.
        "retry": Retry(NoBackoff(), 0),
        # RESP3 would return the reply of HGETALL as a map, which `encoding.pairs` does not read.
        "protocol": 2,
        # Otherwise each attempt to connect reads redis-py's version from the files of its package,
        # and leaves the collector 30 objects.
        "driver_info": _DRIVER_INFO,
        "decode_responses": False,
    }
    return pool
