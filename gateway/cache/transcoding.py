"""Transcoding: makes an image in another format from a cached PNG, so that it need not be bought.

The new image has an entry of its own, costs nothing, has the age and value of its source, and is
taken down with it. Whether transcoding is used at all is a setting. Which images can be
converted faithfully is decided in `imagefile.convert`.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

from gateway.cache.blobs import Blobs, hash_bytes
from gateway.cache.entries import CachedImage, decode_refusal, fresh_images, look_up_refusal
from gateway.cache.image_cache import ImageCache
from gateway.cache.takedowns import Takedowns, is_taken_down
from gateway.imagefile.convert import TranscodedFormat, transcode_image
from gateway.images import Image
from gateway.store.batch import Batch
from gateway.store.protocol import Store
from gateway.tasks import SingleFlight

MAX_CONCURRENT: Final = 2
"""Images that are decoded at the same time: each takes four bytes a pixel."""


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
        self, store: Store, cache: ImageCache, *, blobs: Blobs, takedowns: Takedowns
    ) -> None:
        self._store = store
        self._cache = cache
        self._blobs = blobs
        self._takedowns = takedowns
        self._permits = asyncio.Semaphore(MAX_CONCURRENT)
        self._running: SingleFlight[str, Image | None] = SingleFlight()

    async def fill(
        self, target: TranscodingTarget, slots: Iterable[int]
    ) -> Mapping[int, CachedImage]:
        """Those of `slots` that could be made; they are stored. Raises `StoreUnavailable`.

        Empty for a prompt that was taken down, even if its source was not.
        """
        batch = Batch(self._store)
        entry = self._cache.look_up(batch, target.source)
        refusal = look_up_refusal(batch, target.fingerprint)
        await batch.execute()
        if is_taken_down(decode_refusal(refusal.value)):
            return {}
        made: dict[int, CachedImage] = {}
        for slot, source in fresh_images(entry.value, slots).items():
            image_id = _id_of(target, slot, source.image)
            transcode = partial(self._transcode, target, slot, source, image_id=image_id)
            image = await self._running.run(image_id, transcode, name=f"transcode {image_id}")
            if image is not None:
                made[slot] = replace(source, image=image)
        return made

    async def _transcode(
        self, target: TranscodingTarget, slot: int, source: CachedImage, *, image_id: str
    ) -> Image | None:
        """Makes and stores one image; None if it cannot be made faithfully."""
        data = await self._blobs.load(source.image.digest, "raw")
        if data is None or source.image.format != "png":
            return None
        convert = partial(
            transcode_image, data, format=target.format, compression=target.compression
        )
        async with self._permits:
            transcoded = await asyncio.to_thread(convert)
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
        await self._cache.store(
            target.fingerprint,
            {slot: image},
            {digest: transcoded},
            # No flight has this lease, so slots that are being bought stay leased.
            lease=f"transcoding-{image_id}",
            # It expires with its source.
            ttl_seconds=source.ttl_seconds,
        )
        return image

    async def _is_source_taken_down(self, image: Image) -> bool:
        """Whether the source of an image that is about to be stored was taken down meanwhile."""
        # A take-down is written first, and then takes down all images in the set of its source.
        # Here the image is added to that set first, and then the take-downs are read. In every
        # order, either the take-down includes the image or this method finds the take-down.
        batch = Batch(self._store)
        self._cache.add_to_source(batch, image)
        await batch.execute()
        await self._takedowns.refresh()
        return self._blobs.is_taken_down(image.transcoded_from or "")


def _id_of(target: TranscodingTarget, slot: int, source: Image) -> str:
    """The same id each time, so that two workers that make it at once store one image."""
    name = f"{target.fingerprint} {slot} {source.id}"
    return hashlib.sha256(name.encode()).hexdigest()[:24]
