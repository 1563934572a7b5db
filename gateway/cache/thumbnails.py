"""Thumbnails of images, made in processes of their own and cached in this worker's memory.

They are made a few at a time, and each once, however many clients wait for it. Only their source is
stored: a worker that has dropped one makes it again. What a thumbnail is, is `imagefile.thumbnail`.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Final

import structlog

from gateway.cache.blobs import Blobs
from gateway.imagefile.convert_process import ConversionFailed
from gateway.imagefile.thumbnail_process import ThumbnailProcess
from gateway.tasks import Capacity, SerialThread, SingleFlight

MAX_MEMORY_BYTES: Final = 16 << 20
"""Of all cached thumbnails. One has some ten kilobytes."""

MAX_PROCESSES: Final = 2

MAX_WAITING: Final = 256
"""Thumbnails that are made or wait at the same time; each holds the bytes of its source only in its
turn."""

IDLE_SECONDS: Final = 10.0
"""After so long without an image, a process is ended."""

FORMATS: Final = frozenset({"png", "jpeg", "webp", "gif"})
"""The formats of images that can have a thumbnail."""

MAX_IMPOSSIBLE_BYTES: Final = 100
"""What an image without a thumbnail counts in the cache, which remembers it too."""

log = structlog.get_logger(__name__)


class Thumbnails:
    """Makes and caches thumbnails."""

    def __init__(
        self, blobs: Blobs, *, max_pixels: int, max_memory_bytes: int = MAX_MEMORY_BYTES
    ) -> None:
        self._blobs = blobs
        self._max_memory_bytes = max_memory_bytes
        self._cached: OrderedDict[str, bytes] = OrderedDict()
        """By the digest of the source; b"" for an image without a thumbnail."""
        self._size_bytes = 0
        self._making: SingleFlight[str, bytes | None] = SingleFlight()
        self._waiting = Capacity(MAX_WAITING, of="thumbnails to make", setting="its memory")
        self._makers: asyncio.LifoQueue[_Maker] = asyncio.LifoQueue()
        for number in range(MAX_PROCESSES):
            self._makers.put_nowait(_Maker(max_pixels, number))

    async def load(self, digest: str, format: str) -> bytes | None:
        """The thumbnail of the image with these bytes; b"" if it can have none.

        None if its bytes are lost or taken down. Raises `StoreUnavailable`, and 503 if too many
        others are waiting.
        """
        if format not in FORMATS:
            return b""
        if self._blobs.is_taken_down(digest):
            return None
        if digest in self._cached:
            self._cached.move_to_end(digest)
            return self._cached[digest]
        make = partial(self._make, digest)
        return await self._making.run(digest, make, name=f"thumbnail {digest[:12]}")

    async def _make(self, digest: str) -> bytes | None:
        with self._waiting.taken():
            maker = await self._makers.get()
            try:
                data = await self._blobs.peek(digest)
                made = None if data is None else await maker.make(data)
            except ConversionFailed as exc:
                log.warning("thumbnail_failed", digest=digest, error=str(exc))
                made = b""
            finally:
                self._makers.put_nowait(maker)
        if made is not None:
            self._remember(digest, made)
        return None if self._blobs.is_taken_down(digest) else made

    def _remember(self, digest: str, made: bytes) -> None:
        self._cached[digest] = made
        self._size_bytes += len(made) or MAX_IMPOSSIBLE_BYTES
        while self._size_bytes > self._max_memory_bytes:
            _, dropped = self._cached.popitem(last=False)
            self._size_bytes -= len(dropped) or MAX_IMPOSSIBLE_BYTES

    async def end_idle(self) -> None:
        """Ends the processes that have made no thumbnail for `IDLE_SECONDS`."""
        await self._end(lambda maker: maker.process.idle_seconds >= IDLE_SECONDS)

    async def close(self) -> None:
        """Ends all processes that make none now."""
        await self._end(lambda maker: True)

    async def _end(self, ends: Callable[[_Maker], bool]) -> None:
        free = [self._makers.get_nowait() for _ in range(self._makers.qsize())]
        for maker in free:
            try:
                if maker.process.is_running and ends(maker):  # else there is no thread either
                    await maker.thread.run(maker.process.close)
            finally:
                self._makers.put_nowait(maker)


class _Maker:
    """A process, and the thread that waits for it."""

    def __init__(self, max_pixels: int, number: int) -> None:
        self.process = ThumbnailProcess(max_pixels=max_pixels)
        self.thread = SerialThread(f"thumbnails-{number}")

    async def make(self, data: bytes) -> bytes:
        return await self.thread.run(partial(self.process.make, data)) or b""
