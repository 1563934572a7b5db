"""Flights without HTTP, and ephemeral blobs in memory."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from gateway.cache.flights import Flights
from gateway.cache.partial_images import PartialImages
from gateway.errors import StoreUnavailable
from gateway.store.protocol import Store
from gateway.tasks import OwnedTasks


@dataclass
class MemoryBlobs:
    """Ephemeral blobs shared by the flights of several workers. Counts loads."""

    data: dict[str, bytes] = field(default_factory=dict)
    taken_down: set[str] = field(default_factory=set)
    loads: int = 0
    is_unavailable: bool = False

    async def are_taken_down(self, data: bytes) -> bool:
        return hashlib.sha256(data).hexdigest() in self.taken_down

    async def put(self, data: bytes) -> str:
        if self.is_unavailable:
            raise StoreUnavailable
        digest = hashlib.sha256(data).hexdigest()
        self.data[digest] = data
        return digest

    async def load(self, digest: str) -> bytes | None:
        self.loads += 1
        if self.is_unavailable:
            raise StoreUnavailable
        return self.data.get(digest)


def make_flights(store: Store, ephemeral: MemoryBlobs | None = None) -> Flights:
    """The flights of one worker."""
    return Flights(store, PartialImages(store, ephemeral or MemoryBlobs()), OwnedTasks())
