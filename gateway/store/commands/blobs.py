"""Small blobs that travel in a batch."""

from __future__ import annotations

from dataclasses import dataclass

from gateway.store.protocol import Command

# ── bytes that travel with a batch ──────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class PutBlob(Command[None]):
    """Stores bytes as `BlobStore.put` does, but for `StoreFull`: a few always find room.

    So no verb behind it is done without it; whether the store is full, those say. Only for a store
    in which the bytes lie too: `BlobStore.add` adds it where it is known.
    """

    digest: str
    data: bytes
    ttl_seconds: float
