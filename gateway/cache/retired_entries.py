"""Entries of models that were shut down and are served from the cache: they do not expire.

A job scans all entries now and then, and prolongs those of such models long before they expire:
slots, bytes and the records that links need. Only the bound on all bytes still evicts them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from itertools import compress
from typing import Final

import structlog

from gateway.cache.blobs import Blobs
from gateway.cache.entries import Entries, decode_image
from gateway.cache.image_index import ImageIndex
from gateway.cache.tags import Tags
from gateway.images import Image
from gateway.store.batch import Batch, execute
from gateway.store.commands import ScanEntries, Slot
from gateway.store.protocol import Store

MAX_INTERVAL_SECONDS: Final = 3600.0

SCANS_PER_LIFETIME: Final = 8
"""How often, at least, an entry is scanned before it expires."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class RetiredEntries:
    """Prolongs the entries of models that were shut down."""

    store: Store
    entries: Entries
    image_index: ImageIndex
    blobs: Blobs
    tags: Tags
    clock: Callable[[], float]
    """Unix seconds; the store's clock decides when an image expires."""

    @property
    def interval_seconds(self) -> float:
        """The pause between two scans."""
        return min(MAX_INTERVAL_SECONDS, self.entries.ttl_seconds / SCANS_PER_LIFETIME)

    async def prolong(self, models: Collection[str]) -> int:
        """Prolongs the images of these models that have lived half of their time.

        Returns how many. Raises `StoreUnavailable`.
        """
        count, after = 0, ""
        while models:
            page = await execute(self.store, ScanEntries(after))
            latest = self.clock() + self.entries.ttl_seconds / 2
            for fingerprint, slots in page.entries.items():
                due = {n: slot for n, slot in slots.items() if slot.expires_at < latest}
                images = _images_of(due, models)
                if images:
                    count += await self._prolong(fingerprint, images)
            if page.after is None:
                break
            after = page.after
        if count:
            log.info("retired_images_kept", images=count)
        return count

    async def _prolong(self, fingerprint: str, images: Mapping[int, Image]) -> int:
        has_bytes = [await self.blobs.prolong(image) for image in images.values()]
        kept = dict(compress(images.items(), has_bytes))
        batch = Batch(self.store)
        for indexed in await self.image_index.prolong(batch, [i.id for i in kept.values()]):
            self.tags.add(batch, fingerprint, indexed.tags)
        for image in kept.values():
            self.image_index.add_to_source(batch, image)
        self.entries.prolong(batch, fingerprint, {n: image.id for n, image in kept.items()})
        await batch.execute()
        # A take-down that came meanwhile has deleted the bytes before they were stored again.
        await self.blobs.withdraw([image.digest for image in kept.values()])
        return len(kept)


def _images_of(slots: Mapping[int, Slot], models: Collection[str]) -> dict[int, Image]:
    images = {n: decode_image(slot.data) for n, slot in slots.items()}
    return {n: image for n, image in images.items() if image.model in models}
