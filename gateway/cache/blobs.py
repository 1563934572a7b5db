"""Blobs: the bytes of pictures, by content hash.

Bytes are stored once however many slots hold them, and are checked against their hash whenever
they are read, so that damage in the store is found here and never served. Where they lie (Redis,
a folder) is `store/`; which picture they belong to is `entries`.
"""

from __future__ import annotations

import asyncio
import hashlib
from typing import Final

from pydantic import BaseModel, ConfigDict, Field

from gateway.store.verbs import BlobStore

INLINE_BYTES: Final = 512 * 1024
"""Hashing this much takes about a third of a millisecond; more goes to a thread."""


class BlobsSettings(BaseModel):
    """How long bytes stay."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    lifetime_seconds: float = Field(default=39 * 86_400, gt=0)
    """Longer than any entry that names them: entry + stale_if_error + url_ttl (CONTRACT §7)."""


class Blobs:
    """Stores and reads picture bytes."""

    def __init__(self, settings: BlobsSettings, store: BlobStore) -> None:
        self._settings = settings
        self._store = store
        self._reading: dict[str, asyncio.Task[bytes | None]] = {}

    async def put(self, digest: str, data: bytes) -> None:
        """Stores `data` under its hash, `digest`; repeating it only prolongs its life."""
        await self._store.put(digest, data, self._settings.lifetime_seconds)

    async def get(self, digest: str) -> bytes | None:
        """The bytes, or None when they are gone or damaged.

        Those who ask for the same bytes at the same time share one read.
        """
        task = self._reading.get(digest)
        if task is None:
            task = asyncio.create_task(self._read(digest), name=f"read blob {digest[:12]}")
            self._reading[digest] = task
            task.add_done_callback(lambda _: self._reading.pop(digest, None))
        return await asyncio.shield(task)

    async def _read(self, digest: str) -> bytes | None:
        data = await self._store.get(digest)
        if data is None or await hash_bytes(data) == digest:
            return data
        await self._store.delete(digest)
        return None


async def hash_bytes(data: bytes) -> str:
    """SHA-256, hex; off the event loop when it would be felt there."""
    if len(data) <= INLINE_BYTES:
        return hashlib.sha256(data).hexdigest()
    return (await asyncio.to_thread(hashlib.sha256, data)).hexdigest()
