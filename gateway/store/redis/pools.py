"""Connections to the one server at a URL, and the check of its options before the first one."""

from __future__ import annotations

from typing import Any, Final

from redis.asyncio import ConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.driver_info import DriverInfo
from redis.exceptions import RedisError

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


def check_options(url: str) -> None:
    """Raises `ValueError` with what is expected of the options of a URL of one server."""
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
