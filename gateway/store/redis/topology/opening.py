"""Which kind of topology a URL names."""

from __future__ import annotations

from gateway.store.redis.topology.addresses import Addresses
from gateway.store.redis.topology.sentinel import SentinelMaster
from gateway.store.redis.topology.single import SingleServer
from gateway.store.redis.urls import SENTINEL_SCHEME


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
