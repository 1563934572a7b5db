"""Ephemeral blobs: the bytes of partial images, for the followers of a flight in other workers.

They expire after minutes, and are neither tracked nor evicted. Stored images are `blobs`.
"""

from __future__ import annotations

from typing import Final

from gateway.cache.blobs import hash_bytes
from gateway.cache.takedowns import Takedowns
from gateway.store.protocol import BlobStore

EPHEMERAL_SECONDS: Final = 600.0
"""How long followers that join a flight can read its partial images."""


class EphemeralBlobs:
    """Stores and loads the bytes of partial images."""

    def __init__(self, blob_store: BlobStore, takedowns: Takedowns) -> None:
        self._blob_store = blob_store.ephemeral()
        self._takedowns = takedowns

    async def are_taken_down(self, data: bytes) -> bool:
        """Whether these bytes may not be shown."""
        # Hashed only if anything is taken down, because clients wait for the partial image
        # meanwhile.
        return len(self._takedowns) > 0 and await hash_bytes(data) in self._takedowns

    async def put(self, data: bytes) -> str:
        """Stores bytes and returns their digest. Raises `StoreUnavailable`."""
        digest = await hash_bytes(data)
        await self._blob_store.put(digest, data, EPHEMERAL_SECONDS)
        return digest

    async def load(self, digest: str) -> bytes | None:
        """The bytes; None if they are expired, damaged or taken down. Raises `StoreUnavailable`."""
        if digest in self._takedowns:
            return None
        data = await self._blob_store.get(digest)
        return data if data is not None and await hash_bytes(data) == digest else None
