"""URLs of a Redis: which are valid, and how they are shown."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import SplitResult, urlsplit

TIMEOUT_SECONDS: Final = 2.0
"""For a batch of commands, connecting included (docs/reference/cache.md#store-unavailable)."""

SENTINEL_SCHEME: Final = "redis+sentinel"

CLUSTER_SCHEME: Final = "redis+cluster"

REDIS_SCHEMES: Final = ("redis", "rediss", "unix", SENTINEL_SCHEME, CLUSTER_SCHEME)

MULTI_HOST_SCHEMES: Final = (SENTINEL_SCHEME, CLUSTER_SCHEME)
"""The schemes of several servers, one of which takes over when another is lost."""

INVALID_URL: Final = (
    "The Redis URL cannot be read; it looks like redis://user:password@host:6379/0 or"
    " unix:///path?db=0, with signs like / in a password written as %2F."
)

_DATABASE_PATH: Final = re.compile(r"(/\d*)?")


def is_redis_url(url: str) -> bool:
    """Whether the scheme is one of `REDIS_SCHEMES`."""
    return url.partition("://")[0] in REDIS_SCHEMES


def is_multi_host_url(url: str) -> bool:
    """Whether the scheme is one of `MULTI_HOST_SCHEMES`."""
    return url.partition("://")[0] in MULTI_HOST_SCHEMES


def redacted_url(url: str) -> str:
    """A Redis URL without user, password and options.

    Raises `ValueError` for a URL that is invalid or not supported; its message never quotes the
    URL.
    """
    scheme = url.partition("://")[0]
    if scheme not in REDIS_SCHEMES:
        raise ValueError("A Redis URL begins with redis://, rediss:// or unix://.")
    parts = urlsplit(url)
    if not is_complete(parts):
        raise ValueError(INVALID_URL)
    return f"{scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def is_complete(parts: SplitResult) -> bool:
    """Whether a URL names a server or a socket, and nothing was cut off by a bare sign."""
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
