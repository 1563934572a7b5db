"""Finds the images of the cache, newest first, by model, size, key, tag and time.

A search walks down the shortest list that it names (`indexed_image`) and compares the other
conditions with each record. The lists may have images that are not in the cache any more, so each
image is looked up: those that are gone are left out, and removed from the lists.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from gateway.cache.blobs import Blobs
from gateway.cache.image_cache import ImageCache
from gateway.cache.image_index import ImageIndex
from gateway.cache.indexed_image import (
    ALL,
    LISTS,
    MEMBER,
    IndexedImage,
    list_member,
    list_name,
    list_time,
)
from gateway.store.batch import Batch, execute
from gateway.store.commands import (
    CountOrderedSets,
    Entry,
    Hits,
    ReadHits,
    ReadOrderedSet,
    RemoveFromOrderedSets,
)
from gateway.store.protocol import Store

MAX_SCANNED: Final = 1000
"""Images of a list that one search looks at. If more could match, it ends early, with a cursor."""

MAX_SCANNED_BYTES: Final = 8 << 20
"""Bytes of records after which a search ends early too: a record may have a prompt."""

FIRST_PAGE: Final = 25
SCAN_PAGE: Final = 100
"""Records that are read at once, first and at most: some two milliseconds of the event loop."""

PAGE_BYTES: Final = 512 << 10
"""What the records of a page should have together. A prompt takes up to 128 KB."""

ENTRIES_PAGE: Final = 15
"""Entries that are read at once. One has up to 64 images."""

UNLIST_AFTER_SECONDS: Final = 600.0
"""An image without bytes is left in its lists for so long: it may be about to be stored."""

ImageState: TypeAlias = Literal["cached", "expired", "purged"]


@dataclass(frozen=True, slots=True)
class SearchTerms:
    """The conditions of a search, which an image meets all."""

    model: str | None = None
    size: str | None = None
    tag: str | None = None
    key: str | None = None
    """The name of the key that bought it."""
    key_id: str | None = None
    since: float | None = None
    """Unix seconds; the first that matches."""
    until: float | None = None
    """The first that does not match any more."""

    def lists(self) -> list[str]:
        """The names of the lists that have every image that matches."""
        if self.key_id is not None:
            # No other one, although it may be shorter: a cursor names an image of the list, and
            # the holder of the key must not learn of images of other keys.
            return [list_name("key", self.key_id)]
        named = {
            "name": self.key,
            "tag": self.tag,
            "size": self.size,
            "model": self.model,
        }
        return [list_name(kind, value) for kind, value in named.items() if value is not None] or [
            ALL
        ]

    def matches(self, indexed: IndexedImage) -> bool:
        """Whether an image meets all conditions except for the time."""
        return (
            self.model in (None, indexed.model)
            and self.size in (None, indexed.size)
            and self.key in (None, indexed.key)
            and self.key_id in (None, indexed.key_id)
            and (self.tag is None or self.tag in indexed.tags)
        )


@dataclass(frozen=True, slots=True)
class FoundImage:
    """An image whose bytes are stored, as the cache has it now."""

    id: str
    indexed: IndexedImage
    state: ImageState
    """`expired` also if the entry is gone because of its age; `purged` if something else removed
    the image from its entry, or displaced it. Its links work in all states."""
    slot: int | None
    """None if it is not in its entry."""
    expires_at: float | None
    hits: Hits


@dataclass(frozen=True, slots=True)
class ImagePage:
    """Some of the images of a search."""

    images: Sequence[FoundImage]
    after: str | None
    """The cursor with which the search goes on; None at its end."""


class ImageSearch:
    """Searches the lists of images."""

    def __init__(
        self,
        store: Store,
        image_cache: ImageCache,
        *,
        image_index: ImageIndex,
        blobs: Blobs,
        ttl_seconds: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._image_cache = image_cache
        self._image_index = image_index
        self._blobs = blobs
        self._ttl_seconds = ttl_seconds
        """An image of this age may have expired."""
        self._clock = clock

    async def search(self, terms: SearchTerms, *, limit: int, after: str = "") -> ImagePage:
        """Up to `limit` images, newest first, from the cursor `after` ("": the start).

        There may be fewer, or none, although the search goes on. Raises `StoreUnavailable`.
        """
        lists = terms.lists()
        lengths = await execute(self._store, CountOrderedSets(LISTS, tuple(lists)))
        if 0 in lengths:
            return ImagePage((), None)
        shortest = lists[lengths.index(min(lengths))]
        before = min(filter(None, (after, _time_or_empty(terms.until))), default="")
        first = _time_or_empty(terms.since)
        found: list[FoundImage] = []
        scanned, scanned_bytes, count = 0, 0, min(FIRST_PAGE, SCAN_PAGE)
        while scanned < MAX_SCANNED and scanned_bytes < MAX_SCANNED_BYTES:
            page = await execute(self._store, ReadOrderedSet(LISTS, shortest, count, before))
            members = [member for member in page if member >= first]
            wanted, size_bytes = await self._matching(shortest, members, terms)
            scanned, scanned_bytes = scanned + len(members), scanned_bytes + size_bytes
            chosen = dict(list(wanted.items())[: limit - len(found)])
            found += await self._describe(chosen)
            is_cut = len(chosen) < len(wanted)
            if not is_cut and len(members) < count:
                return ImagePage(found, None)
            before = next(reversed(chosen)) if is_cut else members[-1]
            count = _next_page(count, size_bytes // len(members))
            if len(found) == limit:
                break
        return ImagePage(found, before)

    async def describe(self, image_id: str, indexed: IndexedImage) -> FoundImage | None:
        """An image of the index; None if its bytes are gone. Raises `StoreUnavailable`."""
        if indexed.is_tombstone:
            return None
        found = await self._describe({list_member(image_id, indexed): (image_id, indexed)})
        return found[0] if found else None

    async def _matching(
        self, name: str, members: Sequence[str], terms: SearchTerms
    ) -> tuple[dict[str, tuple[str, IndexedImage]], int]:
        """Those that match, by member, and the bytes of all records.

        Removes those without a record from the list `name`.
        """
        ids = {m: named["id"] for m in members if (named := MEMBER.fullmatch(m)) is not None}
        records, size_bytes = await self._image_index.read_all(list(ids.values()))
        gone = [m for m in members if _is_gone(records.get(ids.get(m, "")))]
        await self._remove(name, [member for member in gone if self._is_settled(member)])
        matching = {
            member: (image_id, records[image_id])
            for member, image_id in ids.items()
            if member not in gone and terms.matches(records[image_id])
        }
        return matching, size_bytes

    async def _describe(self, images: Mapping[str, tuple[str, IndexedImage]]) -> list[FoundImage]:
        """The images whose bytes are stored, in order."""
        if not images:
            return []
        batch = Batch(self._store)
        tracked = self._blobs.are_tracked(batch, [i.digest for _, i in images.values()])
        hits = batch.add(ReadHits(tuple(image_id for image_id, _ in images.values())))
        await batch.execute()
        there = {
            member: (*image, hit)
            for (member, image), hit, is_tracked in zip(
                images.items(), hits.value, tracked.value, strict=True
            )
            if is_tracked and not self._blobs.is_taken_down(image[1].digest)
        }
        lost = [(m, *image) for m, image in images.items() if m not in there]
        await self._unlist([(i, x) for m, i, x in lost if self._is_settled(m)])
        entries = await self._entries(indexed.fingerprint for _, indexed, _ in there.values())
        return [
            self._found(image_id, indexed, entries[indexed.fingerprint], hit)
            for image_id, indexed, hit in there.values()
        ]

    async def _entries(self, fingerprints: Iterable[str]) -> Mapping[str, Entry]:
        entries: dict[str, Entry] = {}
        names = list(dict.fromkeys(fingerprints))
        for first in range(0, len(names), ENTRIES_PAGE):
            entries |= await self._image_cache.entries(names[first : first + ENTRIES_PAGE])
        return entries

    def _found(self, image_id: str, indexed: IndexedImage, entry: Entry, hits: Hits) -> FoundImage:
        placed = ((n, slot) for n, slot in entry.slots.items() if slot.image_id == image_id)
        number, slot = next(placed, (None, None))
        if slot is not None:
            is_fresh = slot.expires_at > entry.now
            state: ImageState = "cached" if is_fresh else "expired"
            return FoundImage(image_id, indexed, state, number, slot.expires_at, hits)
        is_old = entry.now >= indexed.created_at + self._ttl_seconds
        return FoundImage(image_id, indexed, "expired" if is_old else "purged", None, None, hits)

    def _is_settled(self, member: str) -> bool:
        return member < list_time(self._clock() - UNLIST_AFTER_SECONDS)

    async def _remove(self, name: str, members: Iterable[str]) -> None:
        batch = Batch(self._store)
        for member in members:
            batch.add(RemoveFromOrderedSets(LISTS, (name,), member))
        await batch.execute()

    async def _unlist(self, images: Iterable[tuple[str, IndexedImage]]) -> None:
        batch = Batch(self._store)
        for image_id, indexed in images:
            self._image_index.unlist(batch, image_id, indexed)
        await batch.execute()


def _next_page(count: int, record_bytes: int) -> int:
    """How many records to read next: more if they are small, twice as many at most."""
    return max(1, min(2 * count, SCAN_PAGE, PAGE_BYTES // max(1, record_bytes)))


def _is_gone(indexed: IndexedImage | None) -> bool:
    return indexed is None or indexed.is_tombstone


def _time_or_empty(at: float | None) -> str:
    return "" if at is None else list_time(at)
