"""Removal: what goes when pictures are purged or taken down.

A *purge* empties slots: the next request buys anew, links that were given away go on working.
A *take-down* removes a picture for good: its bytes wherever they are held, every slot that holds
them, what was derived from them; its links answer 410, and bytes like these are never stored
again. Both work in small steps that may be repeated; who dies in between starts over.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Final

from gateway.cache.blobs import Blobs
from gateway.cache.entries import TAGS, Entries, decode_picture
from gateway.cache.image_index import DERIVED, HOLDERS, Gallery
from gateway.cache.takedowns import Takedowns, content_taken_down
from gateway.errors import INVALID_REQUEST, GatewayError, InvalidRequest
from gateway.store.batch import Batch, ask
from gateway.store.commands import ReadEntry, ReadList, ScanEntries, Slot
from gateway.store.protocol import Store

_LINK: Final = re.compile(r"(?:.*/)?img-([A-Za-z0-9]+)\.(?:png|jpeg|webp)(?:\?.*)?")
_PLACE: Final = re.compile(r"([0-9a-f]{64})/(\d{1,2})")
_ID: Final = re.compile(r"[A-Za-z0-9]{1,64}")


@dataclass(frozen=True, slots=True)
class Named:
    """A picture that somebody wants taken down."""

    digest: str
    fingerprint: str


class Removal:
    """Purges and takes down."""

    def __init__(
        self,
        store: Store,
        *,
        entries: Entries,
        gallery: Gallery,
        blobs: Blobs,
        takedowns: Takedowns,
    ) -> None:
        self._store = store
        self._entries = entries
        self._gallery = gallery
        self._blobs = blobs
        self._takedowns = takedowns

    # ── purge ───────────────────────────────────────────────────────────────────────────────

    async def purge_fingerprint(self, fingerprint: str) -> int:
        """Empties every slot of an entry; answers how many held a picture."""
        entry = await ask(self._store, ReadEntry(fingerprint))
        return await self._empty(fingerprint, entry.slots)

    async def purge_tag(self, tag: str) -> int:
        """Empties every entry that was asked for under this tag (`X-Gateway-Tags`)."""
        fingerprints = await ask(self._store, ReadList(TAGS, tag))
        return sum([await self.purge_fingerprint(fingerprint) for fingerprint in fingerprints])

    async def purge_model(self, model: str) -> int:
        """Empties every slot whose picture this model has made."""
        emptied = 0
        async for fingerprint, slots in self._all_entries():
            of_model = {n: s for n, s in slots.items() if decode_picture(s.data).model == model}
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
            page = await ask(self._store, ScanEntries(after))
            for fingerprint, slots in page.entries.items():
                yield fingerprint, slots
            after = page.after

    async def _empty(self, fingerprint: str, slots: Mapping[int, Slot]) -> int:
        if slots:
            batch = Batch(self._store)
            self._entries.empty(batch, fingerprint, {n: slot.picture for n, slot in slots.items()})
            await batch.send()
        return len(slots)

    # ── take-down ───────────────────────────────────────────────────────────────────────────

    async def take_down(self, picture: str, *, with_prompt: bool = False) -> int:
        """Takes a picture down by its link, its id, or FINGERPRINT/SLOT; answers how many went.

        `with_prompt` also refuses the question that it answered, for good. Raises 404.
        """
        named = await self._find(picture)
        digests = await self._with_derived(named.digest)
        batch = Batch(self._store)
        self._takedowns.add(batch, digests)
        if with_prompt:
            self._entries.refuse(batch, named.fingerprint, content_taken_down())
        await batch.send()
        pictures = sum([await self._take_down_holders(digest) for digest in digests])
        if with_prompt:
            pictures += await self.purge_fingerprint(named.fingerprint)
        await self._blobs.delete(digests)
        self._blobs.forget(digests)
        return pictures

    async def _with_derived(self, digest: str) -> list[str]:
        """The bytes, and all that was made from them."""
        found, waiting = [digest], [digest]
        while waiting:
            derived = await ask(self._store, ReadList(DERIVED, waiting.pop()))
            new = [d for d in derived if d not in found]
            found += new
            waiting += new
        return found

    async def _take_down_holders(self, digest: str) -> int:
        holders = await ask(self._store, ReadList(HOLDERS, digest))
        return sum([await self._take_down_one(picture_id) for picture_id in holders])

    async def _take_down_one(self, picture_id: str) -> int:
        """Its slot, and its card; 0 when it was taken down before."""
        card = await self._gallery.find(picture_id)
        if card is None or card.is_gone:
            return 0
        entry = await ask(self._store, ReadEntry(card.fingerprint))
        slots = {n: slot for n, slot in entry.slots.items() if slot.picture == picture_id}
        await self._empty(card.fingerprint, slots)
        batch = Batch(self._store)
        self._gallery.mark_gone(batch, picture_id, card)
        await batch.send()
        return 1

    async def _find(self, picture: str) -> Named:
        if (place := _PLACE.fullmatch(picture)) is not None:
            entry = await ask(self._store, ReadEntry(place[1]))
            slot = entry.slots.get(int(place[2]))
            if slot is not None:
                return Named(decode_picture(slot.data).digest, place[1])
            raise _no_such_picture(picture)
        link = _LINK.fullmatch(picture)
        picture_id = link[1] if link else picture
        if not _ID.fullmatch(picture_id):
            raise InvalidRequest(
                "Name the picture by its link, its id (x-gateway-picture-ids), or as "
                "FINGERPRINT/SLOT.",
                param="picture",
                code="invalid_value",
            )
        card = await self._gallery.find(picture_id)
        if card is None:
            raise _no_such_picture(picture)
        return Named(card.digest, card.fingerprint)


def _no_such_picture(picture: str) -> GatewayError:
    return GatewayError(
        f"There is no picture '{picture[:200]}'.",
        status=404,
        type=INVALID_REQUEST,
        param="picture",
        code="picture_not_found",
    )
