"""Removal: what goes when images are purged or taken down.

A *purge* empties slots: the next request buys anew, links that were given away go on working.
A *take-down* removes an image for good: its bytes wherever they are held, every slot that holds
them, what was derived from them; its links answer 410, and bytes like these are never stored
again. Both work in small steps that may be repeated; who dies in between starts over.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Final

from gateway.cache.blobs import Blobs
from gateway.cache.entries import TAGS, Entries, decode_image
from gateway.cache.image_index import DERIVED, HOLDERS, ImageIndex
from gateway.cache.takedowns import Takedowns, content_taken_down
from gateway.errors import INVALID_REQUEST, GatewayError, InvalidRequest
from gateway.store.batch import Batch, execute
from gateway.store.commands import GetSet, ReadEntry, ScanEntries, Slot
from gateway.store.protocol import Store

_LINK: Final = re.compile(r"(?:.*/)?img-([A-Za-z0-9]+)\.(?:png|jpeg|webp)(?:\?.*)?")
_PLACE: Final = re.compile(r"([0-9a-f]{64})/(\d{1,2})")
_ID: Final = re.compile(r"[A-Za-z0-9]{1,64}")


@dataclass(frozen=True, slots=True)
class TakedownTarget:
    """An image that somebody wants taken down."""

    digest: str
    fingerprint: str


class Invalidation:
    """Purges and takes down."""

    def __init__(
        self,
        store: Store,
        *,
        entries: Entries,
        image_index: ImageIndex,
        blobs: Blobs,
        takedowns: Takedowns,
    ) -> None:
        self._store = store
        self._entries = entries
        self._gallery = image_index
        self._blobs = blobs
        self._takedowns = takedowns

    # ── purge ───────────────────────────────────────────────────────────────────────────────

    async def purge_fingerprint(self, fingerprint: str) -> int:
        """Empties every slot of an entry; answers how many held an image."""
        entry = await execute(self._store, ReadEntry(fingerprint))
        return await self._empty(fingerprint, entry.slots)

    async def purge_tag(self, tag: str) -> int:
        """Empties every entry that was asked for under this tag (`X-Gateway-Tags`)."""
        fingerprints = await execute(self._store, GetSet(TAGS, tag))
        return sum([await self.purge_fingerprint(fingerprint) for fingerprint in fingerprints])

    async def purge_model(self, model: str) -> int:
        """Empties every slot whose image this model has made."""
        emptied = 0
        async for fingerprint, slots in self._all_entries():
            of_model = {n: s for n, s in slots.items() if decode_image(s.data).model == model}
            emptied += await self._empty(fingerprint, of_model)
        return emptied

    async def purge_all(self) -> int:
        """Empties every entry."""
        emptied = 0
        async for fingerprint, slots in self._all_entries():
            emptied += await self._empty(fingerprint, slots)
        return emptied

    async def _all_entries(self) -> AsyncIterator[tuple[str, Mapping[int, Slot]]]:
        after: str | None = ""
        while after is not None:
            page = await execute(self._store, ScanEntries(after))
            for fingerprint, slots in page.entries.items():
                yield fingerprint, slots
            after = page.after

    async def _empty(self, fingerprint: str, slots: Mapping[int, Slot]) -> int:
        if slots:
            batch = Batch(self._store)
            self._entries.empty(batch, fingerprint, {n: slot.image_id for n, slot in slots.items()})
            await batch.execute()
        return len(slots)

    # ── take-down ───────────────────────────────────────────────────────────────────────────

    async def take_down(self, image: str, *, with_prompt: bool = False) -> int:
        """Takes an image down by its link, its id, or FINGERPRINT/SLOT; answers how many went.

        `with_prompt` also refuses the question that it answered, for good. Raises 404.
        """
        named = await self._find(image)
        digests = await self._with_derived(named.digest)
        batch = Batch(self._store)
        self._takedowns.add(batch, digests)
        if with_prompt:
            self._entries.refuse(batch, named.fingerprint, content_taken_down())
        await batch.execute()
        images = sum([await self._take_down_holders(digest) for digest in digests])
        if with_prompt:
            images += await self.purge_fingerprint(named.fingerprint)
        await self._blobs.delete(digests)
        self._blobs.forget(digests)
        return images

    async def _with_derived(self, digest: str) -> list[str]:
        """The bytes, and all that was made from them."""
        found, waiting = [digest], [digest]
        while waiting:
            derived = await execute(self._store, GetSet(DERIVED, waiting.pop()))
            new = [d for d in derived if d not in found]
            found += new
            waiting += new
        return found

    async def _take_down_holders(self, digest: str) -> int:
        holders = await execute(self._store, GetSet(HOLDERS, digest))
        return sum([await self._take_down_one(image_id) for image_id in holders])

    async def _take_down_one(self, image_id: str) -> int:
        """Its slot, and its card; 0 when it was taken down before."""
        indexed = await self._gallery.find(image_id)
        if indexed is None or indexed.is_tombstone:
            return 0
        entry = await execute(self._store, ReadEntry(indexed.fingerprint))
        slots = {n: slot for n, slot in entry.slots.items() if slot.image_id == image_id}
        await self._empty(indexed.fingerprint, slots)
        batch = Batch(self._store)
        self._gallery.tombstone(batch, image_id, indexed)
        await batch.execute()
        return 1

    async def _find(self, image: str) -> TakedownTarget:
        if (place := _PLACE.fullmatch(image)) is not None:
            entry = await execute(self._store, ReadEntry(place[1]))
            slot = entry.slots.get(int(place[2]))
            if slot is not None:
                return TakedownTarget(decode_image(slot.data).digest, place[1])
            raise _no_such_image(image)
        link = _LINK.fullmatch(image)
        image_id = link[1] if link else image
        if not _ID.fullmatch(image_id):
            raise InvalidRequest(
                "Name the image by its link, its id (x-gateway-image-ids), or as FINGERPRINT/SLOT.",
                param="image",
                code="invalid_value",
            )
        indexed = await self._gallery.find(image_id)
        if indexed is None:
            raise _no_such_image(image)
        return TakedownTarget(indexed.digest, indexed.fingerprint)


def _no_such_image(image: str) -> GatewayError:
    return GatewayError(
        f"There is no image '{image[:200]}'.",
        status=404,
        type=INVALID_REQUEST,
        param="image",
        code="image_not_found",
    )
