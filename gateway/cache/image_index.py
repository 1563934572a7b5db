"""The gallery: images by their ids, as links show them.

An image's *card* says which bytes its id stands for and which entry it was bought for. It lives
as long as the bytes: longer than the entry, because links that were given away must go on
working. The card of an image that was taken down stays and says so. The bytes are in `blobs`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import Final

import orjson

from gateway.cache.blobs import Blobs
from gateway.errors import INVALID_REQUEST, GatewayError
from gateway.images import Image, decode_fields
from gateway.store.batch import Batch, execute
from gateway.store.commands import AddToSet, DeleteValue, GetValue, RemoveFromSet, SetValue
from gateway.store.protocol import Store

IMAGES: Final = "image"
"""The space of cards, by image id."""

HOLDERS: Final = "holders"
"""Lists, by digest: the ids of the images that have these bytes."""

DERIVED: Final = "derived"
"""Lists, by digest: the digests of what was made from these bytes."""


@dataclass(frozen=True, slots=True)
class IndexedImage:
    """What an id stands for."""

    digest: str
    format: str
    fingerprint: str
    is_tombstone: bool = False
    """It was taken down."""

    def encode(self) -> bytes:
        """The note's bytes."""
        return orjson.dumps(self)


@dataclass(frozen=True, slots=True)
class ServedImage:
    """An image that may be shown."""

    digest: str
    """SHA-256 of `data`, hex."""
    format: str
    """`png`, `jpeg` or `webp`."""
    data: bytes


def image_path(image: Image) -> str:
    """The path of an image's link (CONTRACT §4); clients find a name in it that ends in `.png`."""
    return f"/images/img-{image.id}.{image.format}"


class ImageIndex:
    """Hangs images and shows them."""

    def __init__(self, store: Store, blobs: Blobs, *, ttl_seconds: float) -> None:
        self._store = store
        self._blobs = blobs
        self._lifetime_seconds = ttl_seconds

    def add(self, batch: Batch, fingerprint: str, images: Mapping[int, Image]) -> None:
        """Writes the cards of an entry's images; one that has its card keeps it."""
        life = self._lifetime_seconds
        for image in images.values():
            indexed = IndexedImage(image.digest, image.format, fingerprint)
            batch.add(SetValue(IMAGES, image.id, indexed.encode(), life, only_if_absent=True))
            batch.add(AddToSet(HOLDERS, image.digest, (image.id,), life))
            if image.transcoded_from is not None:
                batch.add(AddToSet(DERIVED, image.transcoded_from, (image.digest,), life))

    def remove(self, batch: Batch, image: Image) -> None:
        """Removes an image's card, as if it had never hung: its links answer 404."""
        batch.add(DeleteValue(IMAGES, image.id))
        batch.add(RemoveFromSet(HOLDERS, image.digest, (image.id,)))

    def tombstone(self, batch: Batch, image_id: str, indexed: IndexedImage) -> None:
        """From now on its links answer that it was taken down."""
        gone = replace(indexed, is_tombstone=True).encode()
        batch.add(SetValue(IMAGES, image_id, gone, self._lifetime_seconds))

    async def find(self, image_id: str) -> IndexedImage | None:
        """The card of an image, or None when there never was one, or its time is over."""
        note = await execute(self._store, GetValue(IMAGES, image_id))
        return None if note is None else decode_fields(IndexedImage, orjson.loads(note))

    async def open(self, image_id: str) -> ServedImage:
        """The image with its bytes. Raises 404 for an unknown id, 410 when they are gone."""
        indexed = await self.find(image_id)
        if indexed is None:
            raise GatewayError(
                "There is no image of this id.",
                status=HTTPStatus.NOT_FOUND,
                type=INVALID_REQUEST,
                code="image_not_found",
            )
        data = None if indexed.is_tombstone else await self._blobs.load(indexed.digest, "raw")
        if data is None:
            raise GatewayError(
                "This image is no longer kept.",
                status=HTTPStatus.GONE,
                type=INVALID_REQUEST,
                code="image_gone",
            )
        return ServedImage(indexed.digest, indexed.format, data)
