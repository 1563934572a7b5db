"""Invalidation: purges and take-downs.

A *purge* empties slots: the next request buys a new image, and links keep working; `purges` does it
in bounded steps. A *take-down* removes an image for good: its bytes from the store and from memory,
every slot with these bytes, and all images that were transcoded from it. Its links answer 410, and
equal bytes are never stored again. Both consist of small steps that can be repeated, so an
interrupted one is simply run again.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from gateway.cache.entries import decode_image
from gateway.cache.image_cache import ImageCache
from gateway.cache.image_index import IMAGE_NAME, IMAGES_BY_DIGEST, TRANSCODED, ImageIndex
from gateway.cache.purges import Purge, Purges
from gateway.cache.takedowns import Takedowns, content_taken_down
from gateway.errors import INVALID_REQUEST, ErrorCode, GatewayError, InvalidRequest
from gateway.store.batch import Batch
from gateway.store.commands import Slot
from gateway.store.pages import scan_set
from gateway.store.protocol import Store

MAX_LINK: Final = 2048
"""Characters of a link that is searched for its image id."""
# The first image that it names: a query, which anyone can append, may name another one.
_LINK: Final = re.compile(rf"(?:.*?/)?{IMAGE_NAME.pattern}(?:[?#].*)?")
_FINGERPRINT_AND_SLOT: Final = re.compile(r"([0-9a-f]{64})/(\d{1,2})")
_ID: Final = re.compile(r"[A-Za-z0-9]{1,64}")


@dataclass(frozen=True, slots=True)
class TakedownTarget:
    """The image that a take-down names."""

    digest: str
    fingerprint: str


class Invalidation:
    """Purges entries and takes images down."""

    def __init__(
        self,
        store: Store,
        image_cache: ImageCache,
        *,
        image_index: ImageIndex,
        takedowns: Takedowns,
        purges: Purges,
    ) -> None:
        self._store = store
        self._image_cache = image_cache
        self._image_index = image_index
        self._takedowns = takedowns
        self._purges = purges
        self.on_purge: Callable[[], None] = lambda: None
        """Called after each purge, so that nothing purged is served from memory."""

    # ── purge ───────────────────────────────────────────────────────────────────────────────

    async def purge_fingerprint(self, fingerprint: str) -> Purge:
        """Empties all slots of an entry."""
        with self._purging():
            return await self._purges.finished(await self._empty_entry(fingerprint))

    async def purge_tag(self, tag: str) -> Purge:
        """Empties every entry that was requested with this tag (`X-Gateway-Tags`)."""
        with self._purging():
            return await self._purges.start("tag", tag)

    async def purge_model(self, model: str) -> Purge:
        """Empties every slot with an image of this model."""
        with self._purging():
            return await self._purges.start("model", model)

    async def purge_all(self) -> Purge:
        """Empties every entry."""
        with self._purging():
            return await self._purges.start("all", "")

    @contextmanager
    def _purging(self) -> Iterator[None]:
        try:
            yield
        finally:  # also if only a part was purged
            self.on_purge()

    async def _empty_entry(self, fingerprint: str) -> int:
        entry = await self._image_cache.entry(fingerprint)
        return await self._empty(fingerprint, entry.slots)

    async def _empty(self, fingerprint: str, slots: Mapping[int, Slot]) -> int:
        image_ids = {number: slot.image_id for number, slot in slots.items()}
        await self._image_cache.empty(fingerprint, image_ids)
        return len(slots)

    # ── take-down ───────────────────────────────────────────────────────────────────────────

    async def take_down(self, image: str, *, with_prompt: bool = False) -> Purge:
        """Takes an image down that is named by its link, its id, or FINGERPRINT/SLOT.

        `with_prompt` also refuses its fingerprint for good. Raises 404 for an unknown image.
        """
        target = await self._find(image)
        digests = await self._with_transcoded(target.digest)
        batch = Batch(self._store)
        self._takedowns.add(batch, digests)
        if with_prompt:
            # Before the slots are emptied. Storing reads the refusal after it has written the
            # images (`ImageCache.finish`), so one of the two finds an image that is stored at the
            # same time.
            self._image_cache.refuse(batch, target.fingerprint, content_taken_down())
        await batch.execute()
        images = 0
        for digest in digests:
            async for image_id in scan_set(self._store, IMAGES_BY_DIGEST, digest):
                images += await self._take_down_image(image_id)
        if with_prompt:
            with self._purging():
                images += await self._empty_entry(target.fingerprint)
        await self._image_cache.delete(digests)
        return await self._purges.finished(images)

    async def _find(self, image: str) -> TakedownTarget:
        if (named := _FINGERPRINT_AND_SLOT.fullmatch(image)) is not None:
            entry = await self._image_cache.entry(named[1])
            slot = entry.slots.get(int(named[2]))
            if slot is None:
                raise _no_such_image(image)
            return TakedownTarget(decode_image(slot.data).digest, named[1])
        image_id = shown_image(image)
        if not _ID.fullmatch(image_id):
            raise InvalidRequest(
                "Name the image by its link, its id (x-gateway-image-ids), or as FINGERPRINT/SLOT.",
                param="image",
                code=ErrorCode.INVALID_VALUE,
            )
        indexed = await self._image_index.find(image_id)
        if indexed is None:
            raise _no_such_image(image_id)  # not the link: an error may be logged
        return TakedownTarget(indexed.digest, indexed.fingerprint)

    async def _with_transcoded(self, digest: str) -> list[str]:
        """The digest, and those of all images that were transcoded from it."""
        digests, pending = [digest], [digest]
        while pending:
            transcoded = scan_set(self._store, TRANSCODED, pending.pop())
            new = [found async for found in transcoded if found not in digests]
            digests += new
            pending += new
        return digests

    async def _take_down_image(self, image_id: str) -> int:
        """Empties the image's slot and writes its tombstone; 0 if it was taken down before."""
        indexed = await self._image_index.find(image_id)
        if indexed is None or indexed.is_tombstone:
            return 0
        entry = await self._image_cache.entry(indexed.fingerprint)
        slots = {n: slot for n, slot in entry.slots.items() if slot.image_id == image_id}
        await self._empty(indexed.fingerprint, slots)
        batch = Batch(self._store)
        # The tombstone is last: it says that the image is done. Until then an interrupted take-down
        # that is run again repeats these steps.
        self._image_index.tombstone(batch, image_id, indexed)
        await batch.execute()
        return 1


def shown_image(image: str) -> str:
    """An image as a take-down names it, without the signature of a link."""
    link = _LINK.fullmatch(image) if len(image) <= MAX_LINK else None
    return link["id"] if link else image


def _no_such_image(image: str) -> GatewayError:
    return GatewayError(
        f"There is no image '{image[:200]}'.",
        type=INVALID_REQUEST,
        param="image",
        code=ErrorCode.IMAGE_NOT_FOUND,
    )
