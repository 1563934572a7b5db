"""The signing of links, with its settings."""

from __future__ import annotations

import time

from gateway.access.signing import Signing
from gateway.configuration.settings import Settings
from gateway.store.protocol import Store


def create_signing(settings: Settings, store: Store) -> Signing:
    """Signs and verifies links. No I/O."""
    return Signing(
        store,
        keys=settings.server.signing_keys,
        url_ttl_seconds=settings.cache.url_ttl_seconds,
        clock=time.time,
    )
