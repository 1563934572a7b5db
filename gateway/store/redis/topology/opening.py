"""Which kind of topology a URL names."""

from __future__ import annotations

from gateway.store.redis.topology.addresses import Addresses
from gateway.store.redis.topology.single import SingleServer


def find_addresses(url: str) -> Addresses:
    """The addresses behind a URL of a Redis; nothing is sent yet.

    Raises `ValueError` for a URL that cannot be used; its message never quotes the URL.
    """
    return SingleServer(url)
