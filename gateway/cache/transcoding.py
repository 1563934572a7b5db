"""Transcoding: makes an image in another format from a cached PNG, so that it need not be bought.

The new image has an entry of its own, costs nothing, has the age and value of its source, and is
taken down with it. Whether transcoding is used at all is a setting. Which images can be
converted faithfully is decided in `imagefile.convert`. How memory and the keys' turns are bounded
is `docs/reference/cache.md#transcoding`.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final
from weakref import WeakValueDictionary

import structlog

from gateway.cache.blobs import Blobs, hash_bytes
from gateway.cache.entries import CachedImage, decode_refusal, fresh_images, look_up_refusal
from gateway.cache.image_cache import ImageCache
from gateway.cache.image_index import ImageIndex
from gateway.cache.indexed_image import ImageOrigin
from gateway.cache.takedowns import Takedowns, is_taken_down
from gateway.errors import ErrorCode, LimitExceeded
from gateway.imagefile.convert import TranscodedFormat, is_large
from gateway.imagefile.convert_process import ConversionFailed, transcode_in_process
from gateway.images import Image
from gateway.store.batch import Batch
from gateway.store.protocol import Store
from gateway.tasks import SingleFlight

log = structlog.get_logger(__name__)

MAX_SMALL: Final = 2
"""Small images that are transcoded at the same time. Of large ones it is one."""

MAX_OPEN: Final = 16
"""Images of one key that a worker transcodes, or that wait for their turn."""

RETRY_SECONDS: Final = 5
"""When a key with `MAX_OPEN` images should try again. A large image takes up to 10 seconds."""

MAX_IMPOSSIBLE: Final = 1024
"""Images that a worker remembers as impossible to transcode."""


@dataclass(frozen=True, slots=True)
class TranscodingTarget:
    """The entry that is to be filled, and the entry whose PNG images it is made from."""

    fingerprint: str
    source: str
    """The fingerprint of the same query in PNG."""
    format: TranscodedFormat
    compression: int
    """0…100, as `output_compression`."""


class Transcoding:
    """Fills entries from the PNG images of other entries."""

    def __init__(
        self,
        store: Store,
        cache: ImageCache,
        *,
        image_index: ImageIndex,
        blobs: Blobs,
        takedowns: Takedowns,
    ) -> None:
        self._store = store
        self._cache = cache
        self._image_index = image_index
        self._blobs = blobs
        self._takedowns = takedowns
        self._small = asyncio.Semaphore(MAX_SMALL)
        self._large = asyncio.Lock()
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        """By key id, while the key has open images."""
        self._open: Counter[str] = Counter()
        """Images that are transcoded or wait, by key id."""
        self._impossible: OrderedDict[str, None] = OrderedDict()
        """Ids of images that cannot be made faithfully. To find out takes as long as to make one,
        and costs a client nothing."""
        self._requested: SingleFlight[tuple[str, str], Image | None] = SingleFlight()
        """By image and key id. Two keys have the same image in two turns: one with many images
        must not delay another key by all of them."""
        self._making: SingleFlight[str, Image | None] = SingleFlight()
        """By image id, from the turn of the first key on."""

    async def fill(
        self,
        target: TranscodingTarget,
        slots: Iterable[int],
        *,
        key_id: str,
        admit: Callable[[], Coroutine[Any, Any, None]],
        with_expired: bool = False,
    ) -> Mapping[int, CachedImage]:
        """Those of `slots` that could be made; they are stored. Expired sources are only for
        `with_expired`.

        Empty for a prompt that was taken down, even if its source was not. `admit` counts each
        image against the key, unless it is already being made. Raises what `admit` raises,
        `LimitExceeded` if the key has too many open images, or `StoreUnavailable`.
        """
        batch = Batch(self._store)
        look_up = self._cache.look_up(batch, target.source)
        refusal = look_up_refusal(batch, target.fingerprint)
        await batch.execute()
        if is_taken_down(decode_refusal(refusal.value)):
            return {}
        made: dict[int, CachedImage] = {}
        entry = await self._cache.looked_up(look_up)
        for slot, source in fresh_images(entry, slots, with_expired=with_expired).items():
            image_id = _id_of(target, slot, source.image)
            if image_id in self._impossible:
                continue
            find = partial(self._find, target, slot, image_id)
            transcode = partial(self._transcode, target, slot, source, image_id=image_id)
            make = partial(self._making.run, image_id, transcode, name=f"transcode {image_id}")
            if image_id in self._making:
                image = await make()
            else:
                begin = partial(self._begin, find, admit, make, key_id=key_id)
                name = f"turn for {image_id}"
                image = await self._requested.run((image_id, key_id), begin, name=name)
            if image is not None:
                made[slot] = replace(source, image=image)
        return made

    def _begin(
        self,
        find: Callable[[], Awaitable[Image | None]],
        admit: Callable[[], Awaitable[None]],
        make: Callable[[], Awaitable[Image | None]],
        *,
        key_id: str,
    ) -> Coroutine[Any, Any, Image | None]:
        """Raises `LimitExceeded` for the caller alone."""
        self._check_open(key_id)
        self._open[key_id] += 1
        return self._count_and_make(find, admit, make, key_id=key_id)

    def _check_open(self, key_id: str) -> None:
        if self._open[key_id] < MAX_OPEN:
            return
        raise LimitExceeded(
            f"The key has {MAX_OPEN} images that are being converted to another format, the "
            f"most at a time. Please try again in {RETRY_SECONDS}s.",
            reason="transcoding",
            type="requests",
            code=ErrorCode.RATE_LIMIT_EXCEEDED,
            headers={"Retry-After": str(RETRY_SECONDS)},
        )

    async def _count_and_make(
        self,
        find: Callable[[], Awaitable[Image | None]],
        admit: Callable[[], Awaitable[None]],
        make: Callable[[], Awaitable[Image | None]],
        *,
        key_id: str,
    ) -> Image | None:
        """Makes an image in the key's turn, once for all of the key's requests."""
        try:
            # It may have been made since the caller read the entry. Then it does not count.
            if (found := await find()) is not None:
                return found
            await admit()
            # One image of a key at a time. A key with many waits for itself, and the others wait
            # for one image of it at most.
            async with self._turns.setdefault(key_id, asyncio.Lock()):
                return await make()
        finally:
            self._open[key_id] -= 1
            if not self._open[key_id]:
                del self._open[key_id]

    async def _transcode(
        self, target: TranscodingTarget, slot: int, source: CachedImage, *, image_id: str
    ) -> Image | None:
        """Makes and stores one image; None if it cannot be made faithfully."""
        if source.image.format != "png":
            return None
        # Another key may have had an earlier turn for it.
        if (found := await self._find(target, slot, image_id)) is not None:
            return found
        transcoded = await self._convert(target, source.image.digest, image_id=image_id)
        if transcoded is None:
            return None
        digest = await hash_bytes(transcoded)
        if self._blobs.is_taken_down(digest):  # the same source always gives the same bytes
            return None
        echoed = source.image.echoed
        if "output_format" in echoed:
            echoed = {**echoed, "output_format": target.format}
        image = replace(
            source.image,
            id=image_id,
            digest=digest,
            format=target.format,
            size_bytes=len(transcoded),
            echoed=echoed,
            transcoded_from=source.image.digest,
        )
        # Before anything is stored, so that a worker that dies here leaves no image behind.
        if await self._is_source_taken_down(image):
            return None
        bought = await self._image_index.find(source.image.id)
        await self._cache.store(
            target.fingerprint,
            {slot: image},
            {digest: transcoded},
            # No flight has this lease, so slots that are being bought stay leased.
            lease=f"transcoding-{image_id}",
            origin=ImageOrigin() if bought is None else bought.origin,
            # It expires with its source, or at once if that has expired and is served all the same.
            ttl_seconds=max(1, source.ttl_seconds),
        )
        # A purge of the source before this read is seen here; a later one also names this image,
        # which was stored before it.
        entry = await self._cache.entry(target.source)
        if source.image.id not in {one.image_id for one in entry.slots.values()}:
            await self._cache.empty(target.fingerprint, {slot: image_id})
        return image

    async def _find(self, target: TranscodingTarget, slot: int, image_id: str) -> Image | None:
        """The image, if it was made already."""
        entry = await self._cache.entry(target.fingerprint)
        found = fresh_images(entry, [slot], with_expired=True).get(slot)
        return found.image if found is not None and found.image.id == image_id else None

    async def _convert(
        self, target: TranscodingTarget, digest: str, *, image_id: str
    ) -> bytes | None:
        async with self._small:
            png = await self._blobs.load(digest, "raw")
            if png is None:
                return None
            if not is_large(png):
                return await self._convert_now(target, png, image_id=image_id)
            del png
        async with self._large:
            # Again, because an image that waits takes no memory.
            png = await self._blobs.load(digest, "raw")
            if png is None:
                return None
            return await self._convert_now(target, png, image_id=image_id)

    async def _convert_now(
        self, target: TranscodingTarget, png: bytes, *, image_id: str
    ) -> bytes | None:
        convert = partial(
            transcode_in_process, png, format=target.format, compression=target.compression
        )
        try:
            transcoded = await asyncio.to_thread(convert)
        except ConversionFailed as exc:
            log.warning("transcoding_failed", image_id=image_id, error=str(exc))
            return None
        if transcoded is None:
            self._impossible[image_id] = None
            if len(self._impossible) > MAX_IMPOSSIBLE:
                self._impossible.popitem(last=False)
        return transcoded

    async def _is_source_taken_down(self, image: Image) -> bool:
        """Whether the source of an image that is about to be stored was taken down meanwhile."""
        # A take-down is written first, and then takes down all images in the set of its source.
        # Here the image is added to that set first, and then the take-downs are read. In every
        # order, either the take-down includes the image or this method finds the take-down.
        batch = Batch(self._store)
        self._cache.add_to_source(batch, image)
        await batch.execute()
        await self._takedowns.refresh(asks_store=True)
        return self._blobs.is_taken_down(image.transcoded_from or "")


def _id_of(target: TranscodingTarget, slot: int, source: Image) -> str:
    """The same id each time, so that two workers that make it at once store one image."""
    name = f"{target.fingerprint} {slot} {source.id}"
    return hashlib.sha256(name.encode()).hexdigest()[:24]
