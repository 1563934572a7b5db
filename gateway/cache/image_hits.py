"""How often each image was delivered without being bought.

Deliveries are counted in this worker's memory, and added to the store's counts in the background:
a hit asks the store nothing more for it, and a kill loses those of the last seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from gateway.store.batch import execute
from gateway.store.commands import MAX_HITS, CountHits
from gateway.store.protocol import Store

WRITE_EVERY_SECONDS: Final = 20.0

MAX_WAITING: Final = 10_000
"""Images whose hits wait to be written. While the store is unavailable, others are not counted."""


class ImageHits:
    """Counts the hits of images, and writes them."""

    def __init__(self, store: Store, *, ttl_seconds: float) -> None:
        self._store = store
        self._ttl_seconds = ttl_seconds
        self._waiting: dict[str, int] = {}

    def note(self, image_ids: Sequence[str]) -> None:
        """These images are delivered, and were not bought for it."""
        waiting = self._waiting
        for image_id in image_ids:
            if image_id in waiting:
                waiting[image_id] += 1
            elif len(waiting) < MAX_WAITING:
                waiting[image_id] = 1

    async def write(self) -> None:
        """Writes what was noted. Raises `StoreUnavailable`; then the rest waits."""
        waiting, self._waiting = self._waiting, {}
        try:
            while waiting:
                hits = tuple(list(waiting.items())[:MAX_HITS])
                await execute(self._store, CountHits(hits, self._ttl_seconds))
                for image_id, _ in hits:
                    del waiting[image_id]
        finally:
            for image_id, count in waiting.items():
                self._waiting[image_id] = self._waiting.get(image_id, 0) + count
