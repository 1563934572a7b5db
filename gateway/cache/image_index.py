"""The image index: which bytes and which entry an image's id belongs to.

Links name images by their ids. A record of the index lives as long as the bytes, which is longer
than the entry, because links go on working after it. For an image that was taken down, the record
becomes a tombstone. What a record has is `indexed_image`; the lists of images are read in
`image_search`. The bytes are `blobs`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final

from gateway.cache.blobs import Blobs
from gateway.cache.indexed_image import (
    LISTS,
    MAX_LISTED,
    ImageOrigin,
    IndexedImage,
    list_member,
    list_time,
)
from gateway.errors import INVALID_REQUEST, ErrorCode, GatewayError
from gateway.imagefile.check import MEDIA_TYPES
from gateway.images import Image
from gateway.store.batch import Batch, execute
from gateway.store.commands import (
    AddToOrderedSets,
    AddToSet,
    DeleteHits,
    DeleteValue,
    GetValue,
    RemoveFromOrderedSets,
    RemoveFromSet,
    ScanSet,
    SetValue,
)
from gateway.store.protocol import Store
from gateway.stored import read_stored

IMAGES: Final = "images"
"""The space of records, by image id."""

IMAGES_BY_DIGEST: Final = "images_by_digest"
"""The space of sets of image ids, by the digest of their bytes."""

TRANSCODED: Final = "transcoded"
"""The space of sets of digests that were transcoded, by the digest of their source."""

IMAGE_NAME: Final = re.compile(rf"img-(?P<id>[A-Za-z0-9]+)\.(?P<format>{'|'.join(MEDIA_TYPES)})")
"""The file name at the end of a link (`docs/reference/images-api.md#links`)."""


def image_path(image: Image) -> str:
    """The path of an image before it is signed; it ends in `IMAGE_NAME`."""
    return f"/images/img-{image.id}.{image.format}"


class ImageIndex:
    """Adds, removes and finds images by their ids."""

    def __init__(
        self, store: Store, blobs: Blobs, *, ttl_seconds: float, link_seconds: float
    ) -> None:
        self._store = store
        self._blobs = blobs
        self._ttl_seconds = ttl_seconds
        self._link_seconds = link_seconds

    def add(
        self,
        batch: Batch,
        fingerprint: str,
        images: Mapping[int, Image],
        *,
        origin: ImageOrigin | None = None,
    ) -> Mapping[str, IndexedImage]:
        """Adds the images of an entry. A record that exists, or a tombstone, stays as it is.

        Returns their records by id, for `list`.
        """
        ttl, added = self._ttl_seconds, dict[str, IndexedImage]()
        for image in images.values():
            bare = indexed = IndexedImage.of(image, fingerprint)
            if origin is not None:
                indexed = bare.but_bought(image, origin)
            added[image.id] = indexed
            # `only_if_absent`: a batch that is repeated late must not replace a tombstone. One
            # without an origin may be there: links were given before the image was stored.
            expected = (bare.encode_evicted(), bare.encode())
            batch.add(SetValue(IMAGES, image.id, indexed.encode(), ttl, True, expected))
        # One kind after the other: a cluster then needs a round trip for each kind, not each image.
        for image in images.values():
            batch.add(AddToSet(IMAGES_BY_DIGEST, image.digest, (image.id,), ttl))
            self.add_to_source(batch, image)
        return added

    async def prolong(self, batch: Batch, image_ids: Sequence[str]) -> list[IndexedImage]:
        """Keeps records as long as new ones, unless one is replaced before the batch.

        Returns those of images that were not taken down. Raises `StoreUnavailable`.
        """
        reads = Batch(self._store)
        found = {image_id: reads.add(GetValue(IMAGES, image_id)) for image_id in image_ids}
        await reads.execute()
        kept = []
        for image_id, record in found.items():
            encoded = record.value
            if encoded is None:
                continue
            indexed = read_stored("image", encoded, IndexedImage.decode, name=image_id)
            if indexed is None or indexed.is_tombstone:
                continue
            ttl = self._ttl_seconds
            batch.add(SetValue(IMAGES, image_id, encoded, ttl, expected=(encoded,)))
            batch.add(AddToSet(IMAGES_BY_DIGEST, indexed.digest, (image_id,), ttl))
            kept.append(indexed)
        return kept

    def list(self, batch: Batch, added: Mapping[str, IndexedImage]) -> None:
        """Adds images to their lists, after they are tracked: the lists leave out all others."""
        for image_id, indexed in added.items():
            batch.add(
                AddToOrderedSets(
                    LISTS,
                    indexed.lists,
                    list_member(image_id, indexed),
                    self._ttl_seconds,
                    MAX_LISTED,
                    oldest=list_time(indexed.created_at - self._ttl_seconds),
                )
            )

    def unlist(self, batch: Batch, image_id: str, indexed: IndexedImage) -> None:
        """Removes an image from its lists, with its hits. Also works in a full store."""
        member = list_member(image_id, indexed)
        batch.add(RemoveFromOrderedSets(LISTS, indexed.lists, member))
        batch.add(DeleteHits((image_id,)))

    def add_to_source(self, batch: Batch, image: Image) -> None:
        """Adds a transcoded image to the set of its source; a take-down of the source reads it."""
        if image.transcoded_from is not None:
            digests = (image.digest,)
            batch.add(AddToSet(TRANSCODED, image.transcoded_from, digests, self._ttl_seconds))

    def remove(self, batch: Batch, image: Image) -> None:
        """Removes an image without a tombstone: its links answer 404."""
        batch.add(DeleteValue(IMAGES, image.id))
        batch.add(RemoveFromSet(IMAGES_BY_DIGEST, image.digest, (image.id,)))

    def tombstone(self, batch: Batch, image_id: str, indexed: IndexedImage) -> None:
        """Replaces a record with a tombstone: its links answer 410."""
        encoded = indexed.but_tombstone().encode()
        batch.add(SetValue(IMAGES, image_id, encoded, self._ttl_seconds))
        self.unlist(batch, image_id, indexed)

    async def find_evicted(self, digests: Sequence[str]) -> Mapping[str, IndexedImage]:
        """The images with these bytes by id, without bytes that are stored again by now.

        Raises `StoreUnavailable`.
        """
        batch = Batch(self._store)
        tracked = self._blobs.are_tracked(batch, digests)
        sets = [batch.add(ScanSet(IMAGES_BY_DIGEST, digest)) for digest in digests]
        await batch.execute()
        image_ids = [
            image_id
            for found, is_tracked in zip(sets, tracked.value, strict=True)
            for image_id in found.value.members
            if not is_tracked
        ]
        return await self.find_all(image_ids)

    def remove_evicted(self, batch: Batch, image_id: str, indexed: IndexedImage) -> None:
        """Removes an image from the set of its bytes and its lists. Also works in a full store."""
        batch.add(RemoveFromSet(IMAGES_BY_DIGEST, indexed.digest, (image_id,)))
        self.unlist(batch, image_id, indexed)

    def shorten_evicted(self, batch: Batch, image_id: str, indexed: IndexedImage) -> None:
        """Keeps the record only as long as a link that was given: until then it answers 410."""
        encoded = indexed.but_evicted().encode()
        batch.add(SetValue(IMAGES, image_id, encoded, self._link_seconds))

    async def find(self, image_id: str) -> IndexedImage | None:
        """The record of an image; None for an unknown id."""
        encoded = await execute(self._store, GetValue(IMAGES, image_id))
        if encoded is None:
            return None
        return read_stored("image", encoded, IndexedImage.decode, name=image_id)

    async def find_all(self, image_ids: Sequence[str]) -> Mapping[str, IndexedImage]:
        """Their records by id, without unknown and unreadable ones."""
        return (await self.read_all(image_ids))[0]

    async def read_all(self, image_ids: Sequence[str]) -> tuple[Mapping[str, IndexedImage], int]:
        """As `find_all`, and the bytes that were read."""
        batch = Batch(self._store)
        records = {image_id: batch.add(GetValue(IMAGES, image_id)) for image_id in image_ids}
        await batch.execute()
        found = {
            image_id: indexed
            for image_id, record in records.items()
            if record.value is not None
            and (indexed := read_stored("image", record.value, IndexedImage.decode, name=image_id))
        }
        return found, sum(len(record.value or b"") for record in records.values())

    async def open(self, image_id: str) -> IndexedImage:
        """The record of an image with bytes. Raises 404 for an unknown id, 410 after a take-down.

        Its bytes may be lost all the same; then raise `image_gone`.
        """
        indexed = await self.find(image_id)
        if indexed is None:
            raise GatewayError(
                "There is no image with this id.",
                type=INVALID_REQUEST,
                code=ErrorCode.IMAGE_NOT_FOUND,
            )
        if indexed.is_tombstone:
            raise image_gone()
        return indexed


def image_gone() -> GatewayError:
    """The bytes of an image were evicted or taken down."""
    return GatewayError(
        "This image was evicted or taken down.",
        type=INVALID_REQUEST,
        code=ErrorCode.IMAGE_GONE,
    )
