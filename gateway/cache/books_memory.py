"""The memory of the books: a share that images never take, and a warning before it is used up.

The books are keys, counters, journals, ledger and totals. They share Redis' memory, or the disk of
the data folder, with images: their bytes, and what entries and indexes take for each of them. The
store says how much is used in all, the LRU index how many images there are; the rest counts as
books. So a measurement is two commands, however much is stored. Redis rounds the sizes of images
up, so the books seem larger rather than smaller than they are.

Images have a share. They also yield: while the books need more than theirs, the bound of images
falls, and the least recently used ones are evicted before a write is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

import structlog

from gateway.cache.blobs import Blobs
from gateway.store.batch import Batch
from gateway.store.commands import LruTotals, MeasureStore, ReadLruTotals, StoreUse
from gateway.store.protocol import Store

IMAGE_OVERHEAD_BYTES: Final = 3400
"""What entry, image index, lists, hits and LRU index take in Redis for one image, measured."""

MIN_IMAGES_SHARE: Final = 1 / 2
MAX_IMAGES_SHARE: Final = 3 / 4
"""Of Redis' memory. A `total_bytes` between them is the share of images."""

HEADROOM: Final = 1 / 8
MAX_HEADROOM_BYTES: Final = 1 << 30
"""The part of all memory that images leave free for the books, and its maximum."""

DISK_RESERVE_BYTES: Final = 64 << 20
"""Disk space that counts as used: SQLite's log and temporary files need it."""

NEARLY_FULL: Final = 0.97
"""Of Redis' memory. Of a disk, what is left counts: less than `DISK_RESERVE_BYTES`."""

LOW_FROM: Final = 0.8
LOW_UNTIL: Final = 0.75
"""The warning begins when the books use this part of their share, and ends below the other."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class BooksUse:
    """How much of their memory or disk the books use."""

    books_bytes: int
    limit_bytes: int
    """The share that images never take."""
    images_bytes: int | None
    """The bound on the bytes of images now; None: no bound."""
    is_nearly_full: bool = False
    """Hardly any memory or disk is left, for the books or for anything else."""

    @property
    def ratio(self) -> float:
        """The part of the share that is used; above 1, images yield."""
        return self.books_bytes / max(1, self.limit_bytes)

    @property
    def is_low(self) -> bool:
        """Whether an operator should be warned."""
        return self.ratio >= LOW_FROM


class Observer(Protocol):
    """Shows the measurement, as the metrics do."""

    def books_measured(self, used_bytes: int, limit_bytes: int) -> None:
        """The books use so many bytes of their share."""


class BooksMemory:
    """Measures the books, warns, and bounds the images accordingly.

    `shares_bytes`: the images' bytes are in the same Redis, or on the same disk. `on_change` is
    called with whether the books are low, `on_measured` with each measurement.
    """

    def __init__(
        self,
        store: Store,
        blobs: Blobs,
        observer: Observer,
        *,
        shares_bytes: bool,
        on_change: Callable[[bool], None],
        on_measured: Callable[[BooksUse], None] = lambda use: None,
    ) -> None:
        self._store = store
        self._blobs = blobs
        self._observer = observer
        self._shares_bytes = shares_bytes
        self._on_change = on_change
        self._on_measured = on_measured
        self._is_low = False

    async def measure(self) -> BooksUse:
        """Measures once. Raises `StoreUnavailable`."""
        batch = Batch(self._store)
        store_use, images = batch.add(MeasureStore()), batch.add(ReadLruTotals())
        await batch.execute()
        use = measure_books(
            store_use.value,
            images.value,
            bound_bytes=await self._blobs.bound_bytes(),
            shares_bytes=self._shares_bytes,
        )
        self._blobs.yield_to_books(use.images_bytes)
        self._observer.books_measured(use.books_bytes, use.limit_bytes)
        self._on_measured(use)
        is_low = use.ratio >= (LOW_UNTIL if self._is_low else LOW_FROM)
        if is_low != self._is_low:
            self._is_low = is_low
            self._on_change(is_low)
            say = log.warning if is_low else log.info
            event = "books_memory_low" if is_low else "books_memory_sufficient"
            say(event, used_bytes=use.books_bytes, limit_bytes=use.limit_bytes)
        return use


def measure_books(
    store_use: StoreUse, images: LruTotals, *, bound_bytes: int, shares_bytes: bool
) -> BooksUse:
    """What the books use, and what images may use. Pure."""
    if store_use.kind == "disk":
        return _on_disk(store_use, images, shares_bytes=shares_bytes)
    capacity = store_use.capacity_bytes
    least, most = int(capacity * MIN_IMAGES_SHARE), int(capacity * MAX_IMAGES_SHARE)
    share = min(max(bound_bytes, least), most) if shares_bytes else least
    of_images = images.count * IMAGE_OVERHEAD_BYTES + shares_bytes * images.size_bytes
    books = max(0, store_use.used_bytes - of_images)
    free_for_images = capacity - _headroom(capacity) - books
    return BooksUse(
        books,
        capacity - share,
        _allowed(images, of_images, share, free_for_images),
        is_nearly_full=store_use.used_bytes > capacity * NEARLY_FULL,
    )


def _on_disk(store_use: StoreUse, images: LruTotals, *, shares_bytes: bool) -> BooksUse:
    free = store_use.capacity_bytes - store_use.used_bytes
    limit = max(0, store_use.capacity_bytes - DISK_RESERVE_BYTES)
    is_nearly_full = free < DISK_RESERVE_BYTES
    if not shares_bytes:
        return BooksUse(store_use.used_bytes, limit, None, is_nearly_full)
    headroom = _headroom(store_use.capacity_bytes + images.size_bytes)
    allowed = max(0, images.size_bytes + free - headroom)
    return BooksUse(store_use.used_bytes, limit, allowed, is_nearly_full)


def _headroom(capacity_bytes: int) -> int:
    return min(int(capacity_bytes * HEADROOM), MAX_HEADROOM_BYTES)


def _allowed(images: LruTotals, of_images: int, share: int, free: int) -> int | None:
    """The most bytes of images. Each also takes memory that the LRU index does not count."""
    allowed = max(0, min(share, free))
    if of_images == 0:
        return None
    return images.size_bytes * allowed // of_images
