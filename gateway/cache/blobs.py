"""Blobs: the bytes of pictures, by content hash, within bounds.

Bytes are stored once however many slots hold them, and are checked against their hash whenever
they are read from the store, so that damage there is found here and never served. How much there
may be in all is kept on the store's *shelf*: what is least recently used goes first. A part of
them stays in memory (`hot`), as bytes or as base64. Where they lie (Redis, a folder) is `store/`;
which picture they belong to is `entries` and `gallery`; what may never be served is `takedowns`.

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

from gateway.cache.memory import Hot, View
from gateway.cache.takedowns import Takedowns
from gateway.errors import StoreFull
from gateway.images import Picture
from gateway.store.batch import Batch, Handle, ask
from gateway.store.commands import (
    Oldest,
    OnShelf,
    ReadShelf,
    Shelf,
    Shelve,
    Shrink,
    Touch,
    Unshelve,
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
"""Pictures on their way to the store: more would only wait in line, and run into its deadline."""

log = structlog.get_logger(__name__)


class BlobsSettings(BaseModel):
    """How long bytes stay, and how many."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    lifetime_seconds: float = Field(default=39 * 86_400, gt=0)
    """Longer than any entry that names them: entry + stale_if_error + url_ttl (CONTRACT §7)."""
    total_bytes: int | None = Field(default=None, gt=0)
    """All of them together; None: what the place itself says, else 10 GiB."""


class Observer(Protocol):
    """Is told what becomes of bytes; the metrics listen."""

    def evicted(self, pictures: int) -> None:
        """So many had to go to keep within the bound."""

    def damaged(self) -> None:
        """Bytes in the store were not what their name says."""

    def shelf_read(self, shelf: Shelf) -> None:
        """How much there is now."""


class Blobs:
    """Stores and reads picture bytes."""

    def __init__(
        self,
        settings: BlobsSettings,
        blob_store: BlobStore,
        store: Store,
        *,
        hot: Hot,
        takedowns: Takedowns,
        observer: Observer,
    ) -> None:
        self._settings = settings
        self._bytes = blob_store
        self._passing = blob_store.passing()
        self._store = store
        self._hot = hot
        self._takedowns = takedowns
        self._observer = observer
        self._total_bytes = settings.total_bytes
        self._making: dict[tuple[str, View], asyncio.Task[bytes | None]] = {}
        self._storing = asyncio.Semaphore(STORED_AT_ONCE)
        self._touched: dict[str, None] = {}  # by when they were last used, oldest first
        self._lost: set[str] = set()

    # ── in and out ──────────────────────────────────────────────────────────────────────────

    def is_taken_down(self, digest: str) -> bool:
        """Whether these bytes may neither be stored nor served."""
        return digest in self._takedowns

    async def put(self, digest: str, data: bytes) -> None:
        """Stores `data` under its hash, `digest`; repeating it only prolongs its life.

        Whoever does so puts it onto the shelf next (`shelve`). Dying in between leaves bytes that
        nobody counts; `adopt_orphans` finds them. Raises `StoreUnavailable`.
        """
        async with self._storing:
            try:
                await self._bytes.put(digest, data, self._settings.lifetime_seconds)
            except StoreFull:
                await self.make_room(len(data))
                await self._bytes.put(digest, data, self._settings.lifetime_seconds)
        await self.withdraw([digest])

    def put_along(self, batch: Batch, data: Mapping[str, bytes]) -> dict[str, bytes]:
        """Has a batch store bytes by their hashes; answers those that it cannot take along.

        They are for `put`, before the batch is sent; after it, all of them are for `withdraw`.
        """
        left = {}
        for digest, content in data.items():
            command = self._bytes.put_command(digest, content, self._settings.lifetime_seconds)
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

    def shelve(self, batch: Batch, pictures: Iterable[Picture]) -> list[Handle[Sequence[str]]]:
        """Counts stored pictures; what had to go for them is for `evict` to remove."""
        most, lifetime = self._total_bytes or UNKNOWN_TOTAL_BYTES, self._settings.lifetime_seconds
        return [batch.add(Shelve(p.digest, p.size_bytes, lifetime, most)) for p in pictures]

    async def evict(self, shelved: Iterable[Handle[Sequence[str]]]) -> None:
        """Removes the bytes of what is no longer on the shelf. Raises `StoreUnavailable`."""
        await self._evict([digest for handle in shelved for digest in handle.answer])

    def look_for(self, batch: Batch, digests: Iterable[str]) -> Handle[Sequence[bool]]:
        """Asks of each whether it is on the shelf."""
        return batch.add(OnShelf(tuple(digests)))

    async def put_back(self, picture: Picture, data: bytes) -> None:
        """Stores bytes again that this process still has. Raises `StoreUnavailable`."""
        await self.put(picture.digest, data)
        batch = Batch(self._store)
        shelved = self.shelve(batch, [picture])
        await batch.send()
        await self.evict(shelved)

    async def view(self, digest: str, view: View, *, data: bytes | None = None) -> bytes | None:
        """The bytes as `data` or as `base64`; None when they are gone, damaged or taken down.

        `data` are the bytes themselves where the caller has them already.
        """
        if digest in self._takedowns:
            return None
        self._touched.pop(digest, None)
        self._touched[digest] = None
        kept = self._hot.get(digest, view)
        if kept is not None:
            return kept
        if data is not None and len(data) <= ENCODE_INLINE_BYTES:
            return await self._make(digest, view, data)  # not worth a task
        return await self._make_once(digest, view, data)

    async def delete(self, digests: Iterable[str]) -> None:
        """Removes bytes wherever this process knows of them. Raises `StoreUnavailable`."""
        digests = tuple(digests)
        await self._remove(digests)
        await ask(self._store, Unshelve(digests))

    def forget(self, digests: Iterable[str]) -> None:
        """Drops bytes from this process's memory."""
        for digest in digests:
            self._hot.drop(digest)

    async def _make_once(self, digest: str, view: View, data: bytes | None) -> bytes | None:
        """Those who ask for the same view at the same time share one read, and one copy."""
        task = self._making.get((digest, view))
        if task is None:
            making = self._make(digest, view, data)
            task = asyncio.create_task(making, name=f"view blob {digest[:12]}")
            self._making[digest, view] = task
            task.add_done_callback(lambda _: self._making.pop((digest, view), None))
        return await asyncio.shield(task)

    async def _make(self, digest: str, view: View, data: bytes | None) -> bytes | None:
        found = data or self._hot.get(digest, "data") or await self._read(digest)
        if found is None:
            return None
        shown = found if view == "data" else await encode_bytes(found)
        if digest in self._takedowns:  # while they were read
            return None
        self._hot.put(digest, view, shown)
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

    async def put_passing(self, data: bytes) -> str:
        """Stores bytes for ten minutes, off the shelf; answers their hash.

        Raises `StoreUnavailable`.
        """
        digest = await hash_bytes(data)
        await self._passing.put(digest, data, PASSING_SECONDS)
        return digest

    async def read_passing(self, digest: str) -> bytes | None:
        """Such bytes; None when they are gone, damaged or taken down. Raises `StoreUnavailable`."""
        if digest in self._takedowns:
            return None
        data = await self._passing.get(digest)
        return data if data is not None and await hash_bytes(data) == digest else None

    # ── bounds ──────────────────────────────────────────────────────────────────────────────

    async def keep_books(self) -> None:
        """Tells the store what was used or found missing since the last time."""
        touched, self._touched = self._touched, {}
        lost, self._lost = self._lost, set()
        try:
            if used := tuple(digest for digest in touched if digest not in lost):
                await ask(self._store, Touch(used))
            if lost:
                await ask(self._store, Unshelve(tuple(lost)))
        except BaseException:
            self._touched = touched | self._touched
            self._lost |= lost
            raise

    async def keep_within_bounds(self) -> None:
        """Evicts what is too much, also after the bound was lowered, and counts what is there."""
        most = await self.total_bytes()
        while gone := await ask(self._store, Shrink(most)):  # a thousand at most each time
            await self._evict(gone)
        self._observer.shelf_read(await self.shelf())

    async def shelf(self) -> Shelf:
        """How much there is. Raises `StoreUnavailable`."""
        return await ask(self._store, ReadShelf())

    async def total_bytes(self) -> int:
        """How many bytes there may be; asks the place once. Raises `StoreUnavailable`."""
        if self._total_bytes is None:
            self._total_bytes = await self._bytes.capacity_bytes() or DEFAULT_TOTAL_BYTES
        return self._total_bytes

    async def make_room(self, wanted_bytes: int = LEAST_ROOM_BYTES) -> None:
        """The store is full: the least recently used go at once.

        The bytes first and then the books, which a full store would not let us write.
        """
        oldest = await ask(self._store, Oldest(ROOM_FACTOR * max(wanted_bytes, LEAST_ROOM_BYTES)))
        log.warning("store_full", evicted=len(oldest))
        await self._evict(oldest)
        await ask(self._store, Unshelve(tuple(oldest)))

    async def adopt_orphans(self) -> int:
        """Puts bytes that nobody counts onto the shelf, so that they go in their turn.

        Those that were taken down go at once: this place was away when the others removed them.
        """
        adopted, after = 0, ""
        while True:
            mark, sizes = await self._bytes.scan(after, 500)
            digests = tuple(sizes)
            on_shelf = await ask(self._store, OnShelf(digests)) if digests else ()
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
        lifetime = self._settings.lifetime_seconds
        shelve = Shelve(digest, size_bytes, lifetime, await self.total_bytes())
        await self._evict(await ask(self._store, shelve))

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
