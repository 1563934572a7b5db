"""Flights without HTTP, and a place for the bytes of their partial images."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from gateway.cache.flights import Flights
from gateway.cache.partial_images import PartialImages
from gateway.errors import StoreUnavailable
from gateway.store.protocol import Store
from gateway.tasks import OwnedTasks


@dataclass
class Memory:
    """Bytes in memory that several processes' flights share, and that counts who reads them."""

    data: dict[str, bytes] = field(default_factory=dict)
    taken_down: set[str] = field(default_factory=set)
    reads: int = 0
    is_away: bool = False

    async def are_taken_down(self, data: bytes) -> bool:
        return hashlib.sha256(data).hexdigest() in self.taken_down

    async def put_ephemeral(self, data: bytes) -> str:
        if self.is_away:
            raise StoreUnavailable
        digest = hashlib.sha256(data).hexdigest()
        self.data[digest] = data
        return digest

    async def read_ephemeral(self, digest: str) -> bytes | None:
        self.reads += 1
        if self.is_away:
            raise StoreUnavailable
        return self.data.get(digest)


def make_flights(store: Store, memory: Memory | None = None) -> Flights:
    """The flights of one process."""
    return Flights(store, PartialImages(store, memory or Memory()), OwnedTasks())
