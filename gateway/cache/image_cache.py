"""The front door of the cache: stores, loads, links and removes images.

An image has an entry, bytes and a record in the image index. Every image of the cache is stored
here, in one order: bytes, entry, image index, LRU index, eviction. Each step can be repeated. If a
worker dies between two steps, maintenance tracks the bytes that it left.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Final

from gateway.cache.blobs import Blobs
from gateway.cache.entries import (
    CachedImage,
    Entries,
    decode_refusal,
    look_up_refusal,
)
from gateway.cache.image_index import ImageIndex, image_path
from gateway.cache.indexed_image import ImageOrigin
from gateway.cache.linkable import LinkableImages
from gateway.cache.purge_markers import MARKERS, PurgeMarkers
from gateway.cache.tags import Tags
from gateway.cache.takedowns import is_taken_down
from gateway.errors import StoreUnavailable, UpstreamFailure
from gateway.frozen import frozen
from gateway.images import Image, Representation
from gateway.store.batch import Batch, Result, execute
from gateway.store.commands import Entry, Get, ReadEntry
from gateway.store.protocol import Store

EVICTED_AT_ONCE: Final = 100
"""Evicted digests whose slots are emptied in one batch of commands."""

Sign = Callable[[str], Awaitable[str]]
"""Turns a path into a signed path."""

LoadedImages = Mapping[int, tuple[Image, bytes]]
"""Images by slot, each with its bytes or, as a link, with its signed path."""


@frozen
class PendingImages:
    """Images whose commands are in a batch. `ImageCache.finish` does the rest after it."""

    fingerprint: str | None
    images: Mapping[int, Image]
    placed: Result[Mapping[int, int]] | None
    """The slots that the images got; None without a fingerprint."""
    evicted: Sequence[Result[Sequence[str]]]
    """Digests that were evicted from the LRU index; `finish` deletes their bytes."""
    refusal: Result[bytes | None] | None
    """The negative cache, read after the images were stored; None without a fingerprint."""


@frozen
class LookUp:
    """An entry whose commands are in a batch. `ImageCache.looked_up` returns it after that."""

    fingerprint: str
    entry: Result[Entry]
    purges: Result[bytes | None]


class ImageCache:
    """Stores and loads the images of fingerprints."""

    def __init__(
        self,
        store: Store,
        *,
        entries: Entries,
        image_index: ImageIndex,
        blobs: Blobs,
        tags: Tags,
        purge_markers: PurgeMarkers,
    ) -> None:
        self._store = store
        self._entries = entries
        self._tags = tags
        self._purge_markers = purge_markers
        self._image_index = image_index
        self._blobs = blobs
        self._linkable = LinkableImages()

    # ── reading ─────────────────────────────────────────────────────────────────────────────

    def look_up(self, batch: Batch, fingerprint: str) -> LookUp:
        """Reads the entry of a fingerprint, for `looked_up`."""
        entry = self._entries.look_up(batch, fingerprint)
        return LookUp(fingerprint, entry, self._purge_markers.look_up(batch))

    def reads(self, fingerprint: str) -> tuple[ReadEntry, Get]:
        """The reads of `look_up`: the entry, and the markers of purges, None if there are none."""
        return ReadEntry(fingerprint), MARKERS

    async def looked_up(self, look_up: LookUp) -> Entry:
        """The entry, which may be empty, without what a purge under way has removed.

        That is removed here too, so that nothing else finds it. Raises `StoreUnavailable`.
        """
        entry, markers = look_up.entry.value, look_up.purges.value
        if not markers or not entry.slots:
            return entry
        fingerprint = look_up.fingerprint
        purged = await self._purge_markers.purged_slots(fingerprint, entry, markers)
        await self.empty(fingerprint, {n: slot.image_id for n, slot in purged.items()})
        left = {n: slot for n, slot in entry.slots.items() if n not in purged}
        return Entry(entry.now, left)

    async def entry(self, fingerprint: str) -> Entry:
        """As `look_up` and `looked_up`, in a round trip of its own."""
        batch = Batch(self._store)
        look_up = self.look_up(batch, fingerprint)
        await batch.execute()
        return await self.looked_up(look_up)

    async def entries(self, fingerprints: Collection[str]) -> Mapping[str, Entry]:
        """The entries of several fingerprints. Raises `StoreUnavailable`."""
        batch = Batch(self._store)
        markers = self._purge_markers.look_up(batch)
        found = {name: self._entries.look_up(batch, name) for name in fingerprints}
        await batch.execute()
        return {
            name: await self.looked_up(LookUp(name, entry, markers))
            for name, entry in found.items()
        }

    def stale_images(self, entry: Entry, slots: Iterable[int]) -> dict[int, CachedImage]:
        """The expired images of `slots` that may be served if upstream fails."""
        return self._entries.stale_images(entry, slots)

    async def load(
        self,
        fingerprint: str,
        images: Mapping[int, Image],
        representation: Representation,
        *,
        data: Mapping[str, bytes] | None = None,
    ) -> dict[int, tuple[Image, bytes]]:
        """The images whose bytes could be loaded, with their bytes.

        The slots of the others (lost, damaged or taken down) are emptied. `data` has the raw bytes,
        by digest, that the caller has already. Raises `StoreUnavailable`.
        """
        known = data or {}

        async def read(image: Image) -> bytes | None:
            return await self._blobs.load(
                image.digest, representation, data=known.get(image.digest)
            )

        reads = [read(image) for image in images.values()]
        # Mostly there is one, which needs no task of its own.
        found = await asyncio.gather(*reads) if len(reads) > 1 else [await one for one in reads]
        loaded = {
            slot: (image, content)
            for (slot, image), content in zip(images.items(), found, strict=True)
            if content is not None
        }
        if lost := {slot: image.id for slot, image in images.items() if slot not in loaded}:
            await self.empty(fingerprint, lost)
        return loaded

    def load_from_memory(
        self, images: Mapping[int, CachedImage], representation: Representation
    ) -> LoadedImages | None:
        """The images with their bytes, if this worker has all of them in memory."""
        loaded = {}
        for slot, cached in images.items():
            content = self._blobs.load_from_memory(cached.image.digest, representation)
            if content is None:
                return None
            loaded[slot] = (cached.image, content)
        return loaded

    async def link(
        self, fingerprint: str, images: LoadedImages, sign: Sign, *, has_entry: bool = False
    ) -> LoadedImages:
        """The images with signed paths in place of their bytes. Raises `StoreUnavailable`.

        `has_entry`: the entry has these images now. Then the store is asked once for each image.
        """
        by_slot = {slot: image for slot, (image, _) in images.items()}
        image_ids = [image.id for image in by_slot.values()]
        if not (has_entry and self._linkable.has_all(image_ids)):
            await self._make_linkable(fingerprint, images)
            self._linkable.add(image_ids)
        return {slot: (i, (await sign(image_path(i))).encode()) for slot, i in by_slot.items()}

    async def _make_linkable(self, fingerprint: str, images: LoadedImages) -> None:
        batch = Batch(self._store)
        by_slot = {slot: image for slot, (image, _) in images.items()}
        self._image_index.add(batch, fingerprint, by_slot)
        tracked = self._blobs.are_tracked(batch, [image.digest for image in by_slot.values()])
        await batch.execute()
        for (image, data), is_tracked in zip(images.values(), tracked.value, strict=True):
            if not is_tracked:
                # Evicted since: only this worker has the bytes, but any worker may serve the link.
                await self._blobs.restore(image, data)

    def is_taken_down(self, digest: str) -> bool:
        """Whether these bytes may neither be stored nor served."""
        return self._blobs.is_taken_down(digest)

    def keep_base64(self, texts: Mapping[str, memoryview]) -> None:
        """Keeps the base64 of images, by digest, in this worker's memory, as if it had made it."""
        for digest, text in texts.items():
            self._blobs.keep_base64(digest, text)

    def forget(self, digests: Iterable[str]) -> None:
        """Drops bytes from this worker's memory."""
        self._blobs.forget(digests)

    # ── storing ─────────────────────────────────────────────────────────────────────────────

    async def store_bytes(self, batch: Batch, data: Mapping[str, bytes]) -> None:
        """Stores bytes by their digests, or adds small ones to the batch.

        Call this before `store_images`: an entry never refers to bytes that are not stored. Raises
        `StoreUnavailable`.
        """
        large = self._blobs.add_small(batch, data)
        for digest, content in large.items():
            await self._blobs.put(digest, content)

    def store_images(
        self,
        batch: Batch,
        fingerprint: str | None,
        images: Mapping[int, Image],
        *,
        lease: str,
        origin: ImageOrigin | None = None,
        ttl_seconds: float | None = None,
        displaces: bool = False,
    ) -> PendingImages:
        """Adds the commands that put images into their slots and release the lease.

        They also index the images and track their bytes, which must be stored before. Call `finish`
        with the result after the batch.

        Without a fingerprint the images get no entry, and only their links find them. Without an
        `origin` they are in no list of images.
        `ttl_seconds` defaults to the cache's own. With `displaces`, an image that is already in
        such a slot moves to a free one.
        """
        refusal = placed = None
        if fingerprint is not None:
            placed = self._entries.store(
                batch,
                fingerprint,
                lease,
                images=images,
                ttl_seconds=ttl_seconds,
                displaces=displaces,
            )
            refusal = look_up_refusal(batch, fingerprint)
        added = self._image_index.add(batch, fingerprint or "", images, origin=origin)
        evicted = self._blobs.track(batch, images.values())
        if fingerprint is not None and origin is not None:
            self._image_index.list(batch, added)
        return PendingImages(fingerprint, images, placed, evicted, refusal)

    async def finish(self, pending: PendingImages) -> bool:
        """The steps after the batch: applies take-downs that came meanwhile, and evicts.

        Returns whether the entry has all of the images: there may have been no free slot. Raises
        `StoreUnavailable`; then all steps of storing must be repeated.
        """
        # A take-down of a prompt writes its refusal, then empties slots. Storing writes the images,
        # then reads the refusal. In every order, one of the two sees the other.
        is_refused = pending.refusal is not None and is_taken_down(
            decode_refusal(pending.refusal.value)
        )
        if pending.fingerprint is not None and is_refused:
            stored = {image.id for image in pending.images.values()}
            entry = await self.entry(pending.fingerprint)
            slots = {n: slot.image_id for n, slot in entry.slots.items() if slot.image_id in stored}
            await self.empty(pending.fingerprint, slots)
        # Evicted bytes can wait: maintenance finds them as untracked.
        with suppress(StoreUnavailable):
            await self._blobs.evict(pending.evicted)
        # Bytes that were taken down cannot wait, so a failure is raised and all steps are repeated.
        digests = [image.digest for image in pending.images.values()]
        await self._blobs.withdraw(digests)
        has_slots = (
            pending.placed is not None and pending.images.keys() <= pending.placed.value.keys()
        )
        return has_slots and not is_refused and not any(map(self.is_taken_down, digests))

    async def store(
        self,
        fingerprint: str | None,
        images: Mapping[int, Image],
        data: Mapping[str, bytes],
        *,
        lease: str,
        origin: ImageOrigin | None = None,
        ttl_seconds: float | None = None,
    ) -> None:
        """Stores images that were not purchased: transcoded ones, and the one of `doctor`.

        Raises `StoreUnavailable`.
        """
        batch = Batch(self._store)
        await self.store_bytes(batch, data)
        pending = self.store_images(
            batch, fingerprint, images, lease=lease, origin=origin, ttl_seconds=ttl_seconds
        )
        await batch.execute()
        await self.finish(pending)

    def add_to_source(self, batch: Batch, image: Image) -> None:
        """Adds a transcoded image to the set of its source; a take-down of the source reads it."""
        self._image_index.add_to_source(batch, image)

    async def store_refusal(
        self, batch: Batch, key_id: str, fingerprint: str, failure: UpstreamFailure
    ) -> None:
        """Stores a refusal of the prompt's content in the negative cache, and no other failure.

        Nor one of a key that has made `MAX_KEY_REFUSALS` of late. Raises `StoreUnavailable`.
        """
        if not failure.refuses_prompt:
            return
        refused = self._entries.reserve_refusal(key_id, fingerprint)
        if await execute(self._store, refused):
            self._entries.store_refusal(batch, fingerprint, failure)

    # ── tags ────────────────────────────────────────────────────────────────────────────────

    async def reserve_tags(
        self, key_id: str, fingerprint: str, tags: Sequence[str]
    ) -> Sequence[str]:
        """Those of a request's tags that its gateway key has room for; for `add_tags`."""
        return await self._tags.reserve(key_id, fingerprint, tags)

    def add_tags(self, batch: Batch, fingerprint: str, tags: Iterable[str]) -> None:
        """Files an entry that has images under these tags, for purges."""
        self._tags.add(batch, fingerprint, tags)

    async def tag(self, key_id: str, fingerprint: str, tags: Sequence[str]) -> Sequence[str]:
        """Does both, and returns the tags that it stored. Raises `StoreUnavailable`."""
        stored = await self.reserve_tags(key_id, fingerprint, tags)
        batch = Batch(self._store)
        self.add_tags(batch, fingerprint, stored)
        await batch.execute()
        return stored

    # ── removing ────────────────────────────────────────────────────────────────────────────

    async def empty(self, fingerprint: str, slots: Mapping[int, str]) -> None:
        """Empties slots, each only if it still has the image with the given id.

        Raises `StoreUnavailable`.
        """
        if slots:
            batch = Batch(self._store)
            self._entries.empty(batch, fingerprint, slots)
            await batch.execute()

    async def empty_all(self, entries: Mapping[str, Mapping[int, str]]) -> None:
        """As `empty`, of several fingerprints in one round trip."""
        batch = Batch(self._store)
        for fingerprint, slots in entries.items():
            if slots:
                self._entries.empty(batch, fingerprint, slots)
        await batch.execute()

    async def remove_evicted(self, digests: Sequence[str], *, is_full: bool) -> None:
        """Removes the slots of images whose bytes were evicted, so that they take no memory.

        If the store is full, only deletes. What it leaves behind, because the store is unavailable,
        is found by the next request for it.
        """
        for first in range(0, len(digests), EVICTED_AT_ONCE):
            with suppress(StoreUnavailable):
                some = digests[first : first + EVICTED_AT_ONCE]
                await self._remove_evicted(some, is_full=is_full)

    async def _remove_evicted(self, digests: Sequence[str], *, is_full: bool) -> None:
        images = await self._image_index.find_evicted(digests)
        batch = Batch(self._store)
        fingerprints = {image.fingerprint for image in images.values() if image.fingerprint}
        entries = {name: self._entries.look_up(batch, name) for name in sorted(fingerprints)}
        await batch.execute()
        for fingerprint, entry in entries.items():
            slots = {n: s.image_id for n, s in entry.value.slots.items() if s.image_id in images}
            if slots:
                self._entries.empty(batch, fingerprint, slots)
        for image_id, indexed in images.items():
            self._image_index.remove_evicted(batch, image_id, indexed)
        # One kind after the other, as a cluster executes them fastest.
        for image_id, indexed in images.items():
            if not is_full:
                self._image_index.shorten_evicted(batch, image_id, indexed)
        await batch.execute()

    def refuse(self, batch: Batch, fingerprint: str, refusal: UpstreamFailure) -> None:
        """Refuses a fingerprint for good: its prompt was taken down."""
        self._entries.refuse(batch, fingerprint, refusal)

    async def delete(self, digests: Collection[str]) -> None:
        """Deletes bytes from this worker's memory and the store. Raises `StoreUnavailable`."""
        self._blobs.forget(digests)
        await self._blobs.delete(digests)

    async def remove(self, image: Image) -> None:
        """Removes an image that has no entry: its links answer 404. Raises `StoreUnavailable`."""
        batch = Batch(self._store)
        self._image_index.remove(batch, image)
        await batch.execute()
        await self._blobs.delete([image.digest])
