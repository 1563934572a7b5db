"""URLs of a Redis: which are valid, how they are shown, and connections to them."""

from __future__ import annotations

import re
from typing import Any, Final
from urllib.parse import SplitResult, urlsplit

from redis.asyncio import ConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.driver_info import DriverInfo
from redis.exceptions import RedisError

TIMEOUT_SECONDS: Final = 2.0
"""For a batch of commands, connecting included (docs/reference/cache.md#store-unavailable)."""

REDIS_SCHEMES: Final = ("redis", "rediss", "unix")

_INVALID_URL: Final = (
    "The Redis URL cannot be read; it looks like redis://user:password@host:6379/0 or"
    " unix:///path?db=0, with signs like / in a password written as %2F."
)

_DRIVER_INFO: Final = DriverInfo()
"""What Redis' `CLIENT LIST` shows."""

_DATABASE_PATH: Final = re.compile(r"(/\d*)?")


def redacted_url(url: str) -> str:
    """A Redis URL without user, password and options.

    Raises `ValueError` for a URL that is invalid or not supported; its message never quotes the
    URL.
    """
    scheme = url.partition("://")[0]
    if scheme in ("redis+sentinel", "redis+cluster"):
        raise ValueError(f"{scheme}:// is not supported yet; use redis://, rediss:// or unix://.")
    if scheme not in REDIS_SCHEMES:
        raise ValueError("A Redis URL begins with redis://, rediss:// or unix://.")
    parts = urlsplit(url)
    if not _is_complete(parts):
        raise ValueError(_INVALID_URL)
    return f"{scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _is_complete(parts: SplitResult) -> bool:
    # A password with a bare `#` or `?` ends the host early too.
    if parts.fragment or "@" in parts.query:
        return False
    if parts.scheme == "unix":
        return bool(parts.path) and not parts.netloc.rpartition("@")[2]
    try:
        has_valid_port = parts.port is None or parts.port > 0
    except ValueError:
        return False
    # A password with a bare `/`, `?` or `#` ends the host early, so the rest is no database.
    return bool(parts.hostname) and has_valid_port and bool(_DATABASE_PATH.fullmatch(parts.path))


def create_pool(url: str) -> ConnectionPool:
    """A factory of connections; it keeps none. Raises `ValueError` for an invalid option."""
    try:
        pool = ConnectionPool.from_url(url)
    except ValueError:
        raise ValueError(_INVALID_URL) from None
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


def check_redis_url(url: str) -> None:
    """Raises `ValueError` with what a valid URL looks like; its message never quotes the URL."""
    if not _is_complete(urlsplit(url)) or re.search(r"\s", url):
        raise ValueError(
            "redis://user:password@host:6379/0 or unix:///path?db=0, with signs like / # ? and @ in"
            " a password written as %2F %23 %3F and %40"
        )
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
