"""Blobs: the bytes of images by their SHA-256, within a bound.

Equal bytes are stored once, however many slots have them. Whatever is read from the store is
checked against its hash, so that damaged bytes are found here and never served. The store's LRU
index tracks sizes and last uses, and the least recently used bytes are evicted first. Recently
served bytes are also in this worker's memory (`memory`), raw or as base64.

Which image the bytes belong to is `entries` and `image_index`; which may not be served is
`takedowns`; where bytes are stored (Redis, a folder, S3) is `store/blobs/`.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Final, Protocol, TypeVar, cast

import pybase64
import structlog
from pydantic import BaseModel, ConfigDict, Field

from gateway.cache.memory import MemoryCache
from gateway.cache.takedowns import Takedowns
from gateway.conditions import Condition
from gateway.errors import StoreFull, StoreUnavailable
from gateway.images import Image, Representation
from gateway.store.batch import Batch, Result, execute
from gateway.store.commands import (
    AreTracked,
    EvictionCandidates,
    EvictTo,
    LruTotals,
    ReadLruTotals,
    Sweep,
    Touch,
    Track,
    Untrack,
)
from gateway.store.protocol import BlobStore, Store
from gateway.tasks import SingleFlight

INLINE_BYTES: Final = 512 * 1024
"""Hashing this much takes about a third of a millisecond; more goes to a thread."""

ENCODE_INLINE_BYTES: Final = 4 * 1024 * 1024
"""Base64 of this much takes about a millisecond; more goes to a thread."""

DEFAULT_TOTAL_BYTES: Final = 10 << 30
"""The bound if neither settings nor blob store have one (`docs/reference/cache.md#bytes`)."""

UNKNOWN_TOTAL_BYTES: Final = 1 << 50
"""The bound until the blob store's own is known, so large that nothing is evicted meanwhile."""

ROOM_FACTOR: Final = 4
"""A full store evicts so many times the size of one image, because more will follow."""

MIN_ROOM_BYTES: Final = 1 << 20

NODES_FACTOR: Final = 4
"""How much larger a page of the LRU index is when bytes on one node are searched: the index lists
the bytes of all nodes."""

MAX_CANDIDATE_PAGES: Final = 20
"""How many of these pages are read at most. If none has bytes of that node, nothing is evicted."""

MAX_CONCURRENT_PUTS: Final = 4
"""Images that are sent to the store at the same time. More would queue there and time out."""

SCAN_LIMIT: Final = 500
SWEEP_LIMIT: Final = 500
TOUCH_LIMIT: Final = 500

PARTIALS_SHARE: Final = 16
"""The bound on partial images is the bound on images divided by this, and comes on top of it."""

FULL_SECONDS: Final = 10.0
"""Without an eviction for want of room, after which the store counts as having room again."""

T = TypeVar("T")

log = structlog.get_logger(__name__)


class BlobsSettings(BaseModel):
    """How long bytes are stored, and how many."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    ttl_seconds: float = Field(default=39 * 86_400, gt=0)
    """Longer than the entries and links that need them (`docs/reference/cache.md#bytes`)."""
    total_bytes: int | None = Field(default=None, gt=0)
    """The bound; None takes the blob store's own, else 10 GiB."""
    memory_bytes: int = Field(default=0, ge=0)
    """The bound of this worker's memory cache; 0 disables it."""


class Observer(Protocol):
    """Counts evicted and damaged bytes, as the metrics do."""

    def evicted(self, images: int) -> None:
        """So many were evicted to keep within the bound."""

    def damaged(self) -> None:
        """Bytes in the store did not match their hash."""

    def lru_measured(self, lru_totals: LruTotals, *, max_bytes: int) -> None:
        """The totals of the LRU index now, and the bound of its bytes."""


class OnEvicted(Protocol):
    """Removes what else is stored for evicted bytes."""

    async def __call__(self, digests: Sequence[str], *, is_full: bool) -> None:
        """With `is_full`, only commands that need no memory."""


class Blobs:
    """Stores, loads and evicts the bytes of images."""

    def __init__(
        self,
        settings: BlobsSettings,
        blob_store: BlobStore,
        store: Store,
        *,
        takedowns: Takedowns,
        observer: Observer,
    ) -> None:
        self._settings = settings
        self._blob_store = blob_store
        self._store = store
        self._takedowns = takedowns
        self._observer = observer
        self._memory = MemoryCache(settings.memory_bytes)
        self._total_bytes = settings.total_bytes
        self._left_by_books: int | None = None
        self._loading: SingleFlight[tuple[str, Representation], bytes | None] = SingleFlight()
        self._full = Condition(log, "store_full", "store_has_room", counted="evictions")
        self._put_permits = asyncio.Semaphore(MAX_CONCURRENT_PUTS)
        # For `record_uses`: digests by their last use, oldest first, and those found missing.
        self._used: dict[str, None] = {}
        self._lost: set[str] = set()
        self.on_evicted: OnEvicted | None = None
        """Set by `assembly`."""

    # ── loading ─────────────────────────────────────────────────────────────────────────────

    def is_taken_down(self, digest: str) -> bool:
        """Whether these bytes may neither be stored nor served."""
        return digest in self._takedowns

    async def load(
        self, digest: str, representation: Representation, *, data: bytes | None = None
    ) -> bytes | None:
        """The bytes in a representation; None if they are lost, damaged or taken down.

        `data` are the raw bytes if the caller already has them. Raises `StoreUnavailable`.
        """
        if digest in self._takedowns:
            return None
        if (cached := self.load_from_memory(digest, representation)) is not None:
            return cached
        if data is not None and len(data) <= ENCODE_INLINE_BYTES:
            return await self._load(digest, representation, data)  # faster than a task
        # Concurrent requests for one representation share the read, and one copy of the bytes.
        return await self._loading.run(
            (digest, representation),
            partial(self._load, digest, representation, data),
            name=f"load blob {digest[:12]} as {representation}",
        )

    def load_from_memory(self, digest: str, representation: Representation) -> bytes | None:
        """The same if this worker has them in memory; else None."""
        if digest in self._takedowns:
            return None
        self._mark_used(digest)
        return self._memory.get(digest, representation)

    async def peek(self, digest: str) -> bytes | None:
        """The raw bytes as `load` has them, for what is no use: it keeps none from being evicted.

        Nor does it displace others from memory. Raises `StoreUnavailable`.
        """
        if digest in self._takedowns:
            return None
        data = self._memory.peek(digest, "raw") or await self._read(digest)
        return None if digest in self._takedowns else data

    # ── remote bytes ────────────────────────────────────────────────────────────────────────

    @property
    def are_remote(self) -> bool:
        """Whether `measure` and `load_part` read less than all bytes, and `presign` works."""
        return self._blob_store.remote() is not None

    async def measure(self, digest: str) -> int | None:
        """The size of the raw bytes; None if they are lost or taken down.

        Raises `StoreUnavailable`.
        """
        if (remote := self._blob_store.remote()) is None:
            data = await self.load(digest, "raw")
            return None if data is None else len(data)
        if digest in self._takedowns:
            return None
        if (cached := self._memory.get(digest, "raw")) is not None:
            return len(cached)
        return self._found(digest, await remote.size(digest))

    async def load_part(self, digest: str, part: range) -> bytes | memoryview | None:
        """Some of the raw bytes; None if they are lost or taken down. Raises `StoreUnavailable`.

        A part of remote bytes cannot be compared with the hash of the whole.
        """
        cached = self._memory.get(digest, "raw")
        if cached is None and (remote := self._blob_store.remote()) is not None:
            self._mark_used(digest)
            found = None if digest in self._takedowns else await remote.get_range(digest, part)
            return None if digest in self._takedowns else self._found(digest, found)
        data = await self.load(digest, "raw")
        return None if data is None else memoryview(data)[part.start : part.stop]

    async def presign(self, digest: str, seconds: int) -> str | None:
        """A URL of the raw bytes that works for `seconds`; None if they are lost or taken down.

        Raises `StoreUnavailable`, also if the store can give no URL.
        """
        remote = self._blob_store.remote()
        if remote is None:
            raise StoreUnavailable
        if digest in self._takedowns:
            return None
        self._mark_used(digest)
        return self._found(digest, await remote.presign(digest, seconds))

    def _found(self, digest: str, found: T | None) -> T | None:
        if found is None:
            self._lost.add(digest)
        return found

    async def _load(
        self, digest: str, representation: Representation, data: bytes | None
    ) -> bytes | None:
        raw = data or self._memory.get(digest, "raw") or await self._read(digest)
        if raw is None:
            return None
        loaded = raw if representation == "raw" else await encode_bytes(raw)
        if digest in self._takedowns:  # taken down while it was read
            return None
        self._memory.put(digest, representation, loaded)
        return loaded

    async def _read(self, digest: str) -> bytes | None:
        data = await self._blob_store.get(digest)
        if data is not None and await hash_bytes(data) == digest:
            return data
        self._lost.add(digest)
        if data is not None:
            log.error("blob_damaged", digest=digest, size_bytes=len(data))
            self._observer.damaged()
            # A put leaves existing bytes as they are, so damaged ones would never be replaced.
            await self._blob_store.delete(digest)
        return None

    # ── storing and deleting ────────────────────────────────────────────────────────────────

    async def put(self, digest: str, data: bytes) -> None:
        """Stores bytes under their hash; again, it only prolongs their time.

        `track` comes next. A worker that dies in between leaves bytes without a last use, which
        `track_untracked` finds. Raises `StoreUnavailable`.
        """
        async with self._put_permits:
            try:
                await self._blob_store.put(digest, data, self._settings.ttl_seconds)
            except StoreFull as full:
                await self.make_room(full, wanted_bytes=len(data))
                await self._blob_store.put(digest, data, self._settings.ttl_seconds)
        await self.withdraw([digest])

    def add_small(self, batch: Batch, data: Mapping[str, bytes]) -> dict[str, bytes]:
        """Adds the small ones of bytes by digest to a batch; returns the others.

        `put` those before the batch is executed, and `withdraw` all of them after it.
        """
        others = {}
        for digest, content in data.items():
            command = self._blob_store.put_command(digest, content, self._settings.ttl_seconds)
            if command is None:
                others[digest] = content
            else:
                batch.add(command)
        return others

    async def withdraw(self, digests: Iterable[str]) -> None:
        """Deletes stored bytes that were taken down meanwhile. Raises `StoreUnavailable`.

        The take-down's own deletion may have come before they were stored.
        """
        for digest in digests:
            if digest in self._takedowns:
                await self._blob_store.delete(digest)
                self._lost.add(digest)

    async def restore(self, image: Image, data: bytes) -> None:
        """Stores evicted bytes again. Raises `StoreUnavailable`."""
        await self.put(image.digest, data)
        batch = Batch(self._store)
        evicted = self.track(batch, [image])
        await batch.execute()
        await self.evict(evicted)

    async def prolong(self, image: Image) -> bool:
        """Stores bytes again, for as long as new ones; False if they are lost or taken down.

        Raises `StoreUnavailable`.
        """
        data = await self.peek(image.digest)
        if data is None:
            return False
        await self.restore(image, data)
        return True

    async def delete(self, digests: Iterable[str]) -> None:
        """Deletes bytes from the store, and untracks them. Raises `StoreUnavailable`."""
        digests = tuple(digests)
        await self._delete(digests)
        await execute(self._store, Untrack(digests))

    def keep_base64(self, digest: str, text: memoryview) -> None:
        """Has `load` find the base64 of bytes in memory, where that has room for it."""
        # No bytes, because those would be a copy: what is loaded as base64 is only written.
        self._memory.put(digest, "base64", cast(bytes, text))

    def forget(self, digests: Iterable[str]) -> None:
        """Drops bytes from this worker's memory."""
        for digest in digests:
            self._memory.drop(digest)

    # ── keeping within the bound ────────────────────────────────────────────────────────────

    def track(self, batch: Batch, images: Iterable[Image]) -> list[Result[Sequence[str]]]:
        """Tracks stored images. The results are digests for `evict`."""
        max_bytes = self._below_books(self._total_bytes or UNKNOWN_TOTAL_BYTES)
        ttl_seconds = self._settings.ttl_seconds
        images = list(images)
        for image in images:
            # Earlier uses of others may be written after this batch and must not count as later.
            self._mark_used(image.digest)
        return [batch.add(Track(i.digest, i.size_bytes, ttl_seconds, max_bytes)) for i in images]

    def are_tracked(self, batch: Batch, digests: Iterable[str]) -> Result[Sequence[bool]]:
        """Whether each of these is tracked, and so has its bytes in the store."""
        return batch.add(AreTracked(tuple(digests)))

    async def evict(self, evicted: Iterable[Result[Sequence[str]]]) -> None:
        """Deletes the bytes that `track` has evicted. Raises `StoreUnavailable`."""
        if digests := [digest for result in evicted for digest in result.value]:
            await self._evict(digests)
            await self._remove_rest(digests)

    async def record_uses(self) -> None:
        """Writes the last uses, and the lost bytes, since the last time into the LRU index."""
        used, self._used = self._used, {}
        lost, self._lost = self._lost, set()
        try:
            found = [digest for digest in used if digest not in lost]
            # In parts: after an outage of the store there may be very many.
            for first in range(0, len(found), TOUCH_LIMIT):
                await execute(self._store, Touch(tuple(found[first : first + TOUCH_LIMIT])))
            gone = list(lost)
            for first in range(0, len(gone), TOUCH_LIMIT):
                await execute(self._store, Untrack(tuple(gone[first : first + TOUCH_LIMIT])))
        # Also if this is cancelled: the next call writes them.
        except BaseException:
            # Digests that were used again meanwhile keep their later position.
            self._used = {d: None for d in used if d not in self._used} | self._used
            self._lost |= lost
            raise

    def _mark_used(self, digest: str) -> None:
        self._used.pop(digest, None)
        self._used[digest] = None

    async def evict_to_bound(self) -> None:
        """Evicts until the bound is met, also after it was lowered, and reports the totals."""
        self._full.ends_if_quiet(FULL_SECONDS)
        max_bytes = self._below_books(await self.bound_bytes())
        # First what has expired, so that nothing else is evicted for it.
        while await execute(self._store, Sweep(SWEEP_LIMIT)) == SWEEP_LIMIT:
            continue
        totals = await self.totals()
        if totals.size_bytes > max_bytes:
            while evicted := await execute(self._store, EvictTo(max_bytes)):  # limited to 1000
                await self._evict(evicted)
                await self._remove_rest(evicted)
            totals = await self.totals()
        partials = EvictTo(partials_bound(max_bytes), index="partials")
        while evicted := await execute(self._store, partials):
            await asyncio.gather(*map(self._blob_store.ephemeral().delete, evicted))
        self._observer.lru_measured(totals, max_bytes=max_bytes)

    async def totals(self) -> LruTotals:
        """How many images are stored, and their bytes. Raises `StoreUnavailable`."""
        return await execute(self._store, ReadLruTotals())

    async def bound_bytes(self) -> int:
        """The bound of all bytes; asks the blob store once. Raises `StoreUnavailable`."""
        if self._total_bytes is None:
            self._total_bytes = await self._blob_store.capacity_bytes() or DEFAULT_TOTAL_BYTES
        return self._total_bytes

    def yield_to_books(self, max_bytes: int | None) -> None:
        """Bounds all bytes by what the books leave, until the next call; None: no bound."""
        self._left_by_books = max_bytes

    def _below_books(self, max_bytes: int) -> int:
        left = self._left_by_books
        return max_bytes if left is None else min(max_bytes, left)

    async def make_room(self, full: StoreFull, *, wanted_bytes: int = MIN_ROOM_BYTES) -> None:
        """Evicts the least recently used bytes at once, because the store is full.

        If one node of a cluster is full, evicts bytes on this node alone.
        """
        size_bytes = ROOM_FACTOR * max(wanted_bytes, MIN_ROOM_BYTES)
        if full.node is None:
            found = await execute(self._store, EvictionCandidates(size_bytes))
            candidates = list(found)
        else:
            candidates = await self._find_candidates(full.node, size_bytes)
        self._full.occurs(evicted=len(candidates))
        # The bytes first: until they are deleted, a full store takes no other change.
        await self._evict(candidates)
        await execute(self._store, Untrack(tuple(candidates)))
        await self._remove_rest(candidates, is_full=True)

    async def _find_candidates(self, node: str, size_bytes: int) -> list[str]:
        """The least recently used digests on one node that together have `size_bytes`."""
        found: list[str] = []
        missing_bytes, skip = size_bytes, 0
        for _ in range(MAX_CANDIDATE_PAGES):
            # The index does not know on which node bytes are.
            page = await execute(
                self._store, EvictionCandidates(missing_bytes * NODES_FACTOR, skip)
            )
            for digest, digest_bytes in page.items():
                if missing_bytes > 0 and self._blob_store.may_be_on(digest, node):
                    found.append(digest)
                    missing_bytes -= digest_bytes
            if missing_bytes <= 0 or not page:
                break
            skip += len(page)
        return found

    async def track_untracked(self) -> int:
        """Tracks bytes that the LRU index does not know; returns how many.

        Deletes those that were taken down while the blob store was unavailable.
        """
        tracked, after = 0, ""
        while True:
            next_page, sizes = await self._blob_store.scan(after, SCAN_LIMIT)
            digests = tuple(sizes)
            known = await execute(self._store, AreTracked(digests)) if digests else ()
            for digest, is_known in zip(digests, known, strict=True):
                if digest in self._takedowns:
                    await self.delete([digest])
                elif not is_known:
                    max_bytes, ttl_seconds = await self.bound_bytes(), self._settings.ttl_seconds
                    track = Track(digest, sizes[digest], ttl_seconds, max_bytes)
                    await self._evict(await execute(self._store, track))
                    tracked += 1
            if next_page is None:
                return tracked
            after = next_page

    async def _evict(self, digests: Sequence[str]) -> None:
        await self._delete(digests)
        if digests:
            self._observer.evicted(len(digests))

    async def _remove_rest(self, digests: Sequence[str], *, is_full: bool = False) -> None:
        if digests and self.on_evicted is not None:
            await self.on_evicted(digests, is_full=is_full)

    async def _delete(self, digests: Iterable[str]) -> None:
        # The memory cache is not touched: evicted bytes are still correct, and have its own bound.
        await asyncio.gather(*(self._blob_store.delete(digest) for digest in digests))


def partials_bound(max_bytes: int) -> int:
    """The bound on partial images beside a bound on images."""
    return max_bytes // PARTIALS_SHARE


async def hash_bytes(data: bytes) -> str:
    """SHA-256 in hex, in a thread if it takes long."""
    if len(data) <= INLINE_BYTES:
        return hashlib.sha256(data).hexdigest()
    return (await asyncio.to_thread(hashlib.sha256, data)).hexdigest()


async def encode_bytes(data: bytes) -> bytes:
    """Base64, in a thread if it takes long."""
    if len(data) <= ENCODE_INLINE_BYTES:
        return pybase64.b64encode(data)
    return await asyncio.to_thread(pybase64.b64encode, data)
