"""Ephemeral blobs: the bytes of partial images, for the followers of a flight in other workers.

They expire after minutes, and have a bound of their own, beyond which the oldest are evicted: a
partial image is optional, so no image is evicted for it. Stored images are `blobs`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from gateway.cache.blobs import hash_bytes, partials_bound
from gateway.cache.takedowns import Takedowns
from gateway.store.batch import execute
from gateway.store.commands import Track
from gateway.store.protocol import BlobStore, Store

EPHEMERAL_SECONDS: Final = 600.0
"""How long followers that join a flight can read its partial images."""

MAX_SHARE: Final = 8
"""Bytes larger than the bound divided by this are not stored. A flight has three partial images at
most, so it never displaces those of all others."""


class EphemeralBlobs:
    """Stores and loads the bytes of partial images."""

    def __init__(
        self,
        store: Store,
        blob_store: BlobStore,
        takedowns: Takedowns,
        *,
        bound_bytes: Callable[[], Awaitable[int]],
    ) -> None:
        self._store = store
        self._blob_store = blob_store.ephemeral()
        self._takedowns = takedowns
        self._bound_bytes = bound_bytes
        """The bound on images; `partials_bound` is that on partial images."""

    async def are_taken_down(self, data: bytes) -> bool:
        """Whether these bytes may not be shown."""
        # Hashed only if anything is taken down, because clients wait for the partial image
        # meanwhile.
        return len(self._takedowns) > 0 and await hash_bytes(data) in self._takedowns

    async def put(self, data: bytes) -> str | None:
        """Stores bytes and returns their digest; None if they are too large. Raises
        `StoreUnavailable`.
        """
        max_bytes = partials_bound(await self._bound_bytes())
        if len(data) > max_bytes // MAX_SHARE:
            return None
        digest = await hash_bytes(data)
        track = Track(digest, len(data), EPHEMERAL_SECONDS, max_bytes, index="partials")
        evicted = await execute(self._store, track)
        await asyncio.gather(*map(self._blob_store.delete, evicted))
        await self._blob_store.put(digest, data, EPHEMERAL_SECONDS)
        return digest

    async def load(self, digest: str) -> bytes | None:
        """The bytes; None if they are expired, damaged or taken down. Raises `StoreUnavailable`."""
        if digest in self._takedowns:
            return None
        data = await self._blob_store.get(digest)
        return data if data is not None and await hash_bytes(data) == digest else None
