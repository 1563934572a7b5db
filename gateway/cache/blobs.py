"""Blobs: the bytes of images, by content hash, within bounds.

Bytes are stored once however many slots hold them, and are checked against their hash whenever
they are read from the store, so that damage there is found here and never served. How much there
may be in all is kept on the store's *shelf*: what is least recently used goes first. A part of
them stays in memory (`hot`), as bytes or as base64. Where they lie (Redis, a folder) is `store/`;
which image they belong to is `entries` and `gallery`; what may never be served is `takedowns`.

Keeping within bounds is a conversation with the store, so this room sends verbs of its own.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Protocol

import pybase64
import structlog
from pydantic import BaseModel, ConfigDict, Field

from gateway.cache.memory import MemoryCache
from gateway.cache.takedowns import Takedowns
from gateway.errors import StoreFull
from gateway.images import Image, Representation
from gateway.store.batch import Batch, Result, execute
from gateway.store.commands import (
    AreTracked,
    EvictionCandidates,
    EvictTo,
    LruTotals,
    ReadLruTotals,
    Touch,
    Track,
    Untrack,
)
from gateway.store.protocol import BlobStore, Store

INLINE_BYTES: Final = 512 * 1024
"""Hashing this much takes about a third of a millisecond; more goes to a thread."""

ENCODE_INLINE_BYTES: Final = 4 * 1024 * 1024
"""Base64 of this much takes about a millisecond; more goes to a thread."""

DEFAULT_TOTAL_BYTES: Final = 10 << 30
"""The bound where nobody has said one and the place has none of its own (CONTRACT §3)."""

UNKNOWN_TOTAL_BYTES: Final = 1 << 50
"""The bound until the place has been asked: nothing goes for one that nobody knows."""

ROOM_FACTOR: Final = 4
"""When a store is full, so many times what was wanted is made free: the next one will come too."""

LEAST_ROOM_BYTES: Final = 1 << 20

PASSING_SECONDS: Final = 600.0
"""How long the bytes of a partial image can be read by those who join its flight."""

STORED_AT_ONCE: Final = 4
"""Images on their way to the store: more would only wait in line, and run into its deadline."""

log = structlog.get_logger(__name__)


class BlobsSettings(BaseModel):
    """How long bytes stay, and how many."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    ttl_seconds: float = Field(default=39 * 86_400, gt=0)
    """Longer than any entry that names them: entry + stale_if_error + url_ttl (CONTRACT §7)."""
    total_bytes: int | None = Field(default=None, gt=0)
    """All of them together; None: what the place itself says, else 10 GiB."""


class Observer(Protocol):
    """Is told what becomes of bytes; the metrics listen."""

    def evicted(self, images: int) -> None:
        """So many had to go to keep within the bound."""

    def damaged(self) -> None:
        """Bytes in the store were not what their name says."""

    def lru_measured(self, lru_totals: LruTotals) -> None:
        """How much there is now."""


class Blobs:
    """Stores and reads image bytes."""

    def __init__(
        self,
        settings: BlobsSettings,
        blob_store: BlobStore,
        store: Store,
        *,
        memory: MemoryCache,
        takedowns: Takedowns,
        observer: Observer,
    ) -> None:
        self._settings = settings
        self._bytes = blob_store
        self._passing = blob_store.ephemeral()
        self._store = store
        self._memory = memory
        self._takedowns = takedowns
        self._observer = observer
        self._total_bytes = settings.total_bytes
        self._making: dict[tuple[str, Representation], asyncio.Task[bytes | None]] = {}
        self._storing = asyncio.Semaphore(STORED_AT_ONCE)
        self._touched: dict[str, None] = {}  # by when they were last used, oldest first
        self._lost: set[str] = set()

    # ── in and out ──────────────────────────────────────────────────────────────────────────

    def is_taken_down(self, digest: str) -> bool:
        """Whether these bytes may neither be stored nor served."""
        return digest in self._takedowns

    async def put(self, digest: str, data: bytes) -> None:
        """Stores `raw` under its hash, `digest`; repeating it only prolongs its life.

        Whoever does so puts it onto the shelf next (`shelve`). Dying in between leaves bytes that
        nobody counts; `adopt_orphans` finds them. Raises `StoreUnavailable`.
        """
        async with self._storing:
            try:
                await self._bytes.put(digest, data, self._settings.ttl_seconds)
            except StoreFull:
                await self.make_room(len(data))
                await self._bytes.put(digest, data, self._settings.ttl_seconds)
        await self.withdraw([digest])

    def add_small(self, batch: Batch, data: Mapping[str, bytes]) -> dict[str, bytes]:
        """Has a batch store bytes by their hashes; answers those that it cannot take along.

        They are for `put`, before the batch is sent; after it, all of them are for `withdraw`.
        """
        left = {}
        for digest, content in data.items():
            command = self._bytes.put_command(digest, content, self._settings.ttl_seconds)
            if command is None:
                left[digest] = content
            else:
                batch.add(command)
        return left

    async def withdraw(self, digests: Iterable[str]) -> None:
        """Removes what was taken down while it was stored. Raises `StoreUnavailable`.

        Whoever removed the bytes then came too early.
        """
        for digest in digests:
            if digest in self._takedowns:
                await self._bytes.delete(digest)
                self._lost.add(digest)

    def track(self, batch: Batch, images: Iterable[Image]) -> list[Result[Sequence[str]]]:
        """Counts stored images; what had to go for them is for `evict` to remove."""
        most, lifetime = self._total_bytes or UNKNOWN_TOTAL_BYTES, self._settings.ttl_seconds
        return [batch.add(Track(p.digest, p.size_bytes, lifetime, most)) for p in images]

    async def evict(self, shelved: Iterable[Result[Sequence[str]]]) -> None:
        """Removes the bytes of what is no longer on the shelf. Raises `StoreUnavailable`."""
        await self._evict([digest for handle in shelved for digest in handle.value])

    def are_tracked(self, batch: Batch, digests: Iterable[str]) -> Result[Sequence[bool]]:
        """Asks of each whether it is on the shelf."""
        return batch.add(AreTracked(tuple(digests)))

    async def restore(self, image: Image, data: bytes) -> None:
        """Stores bytes again that this process still has. Raises `StoreUnavailable`."""
        await self.put(image.digest, data)
        batch = Batch(self._store)
        shelved = self.track(batch, [image])
        await batch.execute()
        await self.evict(shelved)

    async def load(
        self, digest: str, representation: Representation, *, data: bytes | None = None
    ) -> bytes | None:
        """The bytes as `raw` or as `base64`; None when they are gone, damaged or taken down.

        `raw` are the bytes themselves where the caller has them already.
        """
        if digest in self._takedowns:
            return None
        self._touched.pop(digest, None)
        self._touched[digest] = None
        kept = self._memory.get(digest, representation)
        if kept is not None:
            return kept
        if data is not None and len(data) <= ENCODE_INLINE_BYTES:
            return await self._make(digest, representation, data)  # not worth a task
        return await self._make_once(digest, representation, data)

    async def delete(self, digests: Iterable[str]) -> None:
        """Removes bytes wherever this process knows of them. Raises `StoreUnavailable`."""
        digests = tuple(digests)
        await self._remove(digests)
        await execute(self._store, Untrack(digests))

    def forget(self, digests: Iterable[str]) -> None:
        """Drops bytes from this process's memory."""
        for digest in digests:
            self._memory.drop(digest)

    async def _make_once(
        self, digest: str, representation: Representation, data: bytes | None
    ) -> bytes | None:
        """Concurrent readers of one representation share the read, and one copy."""
        task = self._making.get((digest, representation))
        if task is None:
            making = self._make(digest, representation, data)
            task = asyncio.create_task(making, name=f"representation blob {digest[:12]}")
            self._making[digest, representation] = task
            task.add_done_callback(lambda _: self._making.pop((digest, representation), None))
        return await asyncio.shield(task)

    async def _make(
        self, digest: str, representation: Representation, data: bytes | None
    ) -> bytes | None:
        found = data or self._memory.get(digest, "raw") or await self._read(digest)
        if found is None:
            return None
        shown = found if representation == "raw" else await encode_bytes(found)
        if digest in self._takedowns:  # while they were read
            return None
        self._memory.put(digest, representation, shown)
        return shown

    async def _read(self, digest: str) -> bytes | None:
        data = await self._bytes.get(digest)
        if data is not None and await hash_bytes(data) == digest:
            return data
        self._lost.add(digest)
        if data is not None:
            log.error("damaged_bytes", digest=digest, size_bytes=len(data))
            self._observer.damaged()
            await self._bytes.delete(digest)
        return None

    # ── partial images: outside of every bound but their own time ───────────────────────────────

    async def are_taken_down(self, data: bytes) -> bool:
        """The same of bytes without their hash, which is made only if anything is taken down."""
        return len(self._takedowns) > 0 and await hash_bytes(data) in self._takedowns

    async def put_ephemeral(self, data: bytes) -> str:
        """Stores bytes for ten minutes, off the shelf; answers their hash.

        Raises `StoreUnavailable`.
        """
        digest = await hash_bytes(data)
        await self._passing.put(digest, data, PASSING_SECONDS)
        return digest

    async def read_ephemeral(self, digest: str) -> bytes | None:
        """Such bytes; None when they are gone, damaged or taken down. Raises `StoreUnavailable`."""
        if digest in self._takedowns:
            return None
        data = await self._passing.get(digest)
        return data if data is not None and await hash_bytes(data) == digest else None

    # ── bounds ──────────────────────────────────────────────────────────────────────────────

    async def record_uses(self) -> None:
        """Tells the store what was used or found missing since the last time."""
        touched, self._touched = self._touched, {}
        lost, self._lost = self._lost, set()
        try:
            if used := tuple(digest for digest in touched if digest not in lost):
                await execute(self._store, Touch(used))
            if lost:
                await execute(self._store, Untrack(tuple(lost)))
        except BaseException:
            self._touched = touched | self._touched
            self._lost |= lost
            raise

    async def evict_to_bound(self) -> None:
        """Evicts what is too much, also after the bound was lowered, and counts what is there."""
        most = await self.total_bytes()
        while gone := await execute(self._store, EvictTo(most)):  # a thousand at most each time
            await self._evict(gone)
        self._observer.lru_measured(await self.lru_totals())

    async def lru_totals(self) -> LruTotals:
        """How much there is. Raises `StoreUnavailable`."""
        return await execute(self._store, ReadLruTotals())

    async def total_bytes(self) -> int:
        """How many bytes there may be; asks the place once. Raises `StoreUnavailable`."""
        if self._total_bytes is None:
            self._total_bytes = await self._bytes.capacity_bytes() or DEFAULT_TOTAL_BYTES
        return self._total_bytes

    async def make_room(self, wanted_bytes: int = LEAST_ROOM_BYTES) -> None:
        """The store is full: the least recently used go at once.

        The bytes first and then the books, which a full store would not let us write.
        """
        oldest = await execute(
            self._store, EvictionCandidates(ROOM_FACTOR * max(wanted_bytes, LEAST_ROOM_BYTES))
        )
        log.warning("store_full", evicted=len(oldest))
        await self._evict(oldest)
        await execute(self._store, Untrack(tuple(oldest)))

    async def track_untracked(self) -> int:
        """Puts bytes that nobody counts onto the shelf, so that they go in their turn.

        Those that were taken down go at once: this place was away when the others removed them.
        """
        adopted, after = 0, ""
        while True:
            mark, sizes = await self._bytes.scan(after, 500)
            digests = tuple(sizes)
            on_shelf = await execute(self._store, AreTracked(digests)) if digests else ()
            for digest, is_on_shelf in zip(digests, on_shelf, strict=True):
                if digest in self._takedowns:
                    await self.delete([digest])
                elif not is_on_shelf:
                    await self._adopt(digest, sizes[digest])
                    adopted += 1
            if mark is None:
                return adopted
            after = mark

    async def _adopt(self, digest: str, size_bytes: int) -> None:
        lifetime = self._settings.ttl_seconds
        track = Track(digest, size_bytes, lifetime, await self.total_bytes())
        await self._evict(await execute(self._store, track))

    async def _evict(self, digests: Sequence[str]) -> None:
        await self._remove(digests)
        if digests:
            self._observer.evicted(len(digests))

    async def _remove(self, digests: Iterable[str]) -> None:
        """The bytes where they are stored; memory lets go of them in its own time."""
        await asyncio.gather(*(self._bytes.delete(digest) for digest in digests))


async def hash_bytes(data: bytes) -> str:
    """SHA-256, hex; off the event loop when it would be felt there."""
    if len(data) <= INLINE_BYTES:
        return hashlib.sha256(data).hexdigest()
    return (await asyncio.to_thread(hashlib.sha256, data)).hexdigest()


async def encode_bytes(data: bytes) -> bytes:
    """Base64; off the event loop when it would be felt there."""
    if len(data) <= ENCODE_INLINE_BYTES:
        return pybase64.b64encode(data)
    return await asyncio.to_thread(pybase64.b64encode, data)
