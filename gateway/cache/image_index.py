"""The gallery: pictures by their ids, as links show them.

A picture's *card* says which bytes its id stands for and which entry it was bought for. It lives
as long as the bytes: longer than the entry, because links that were given away must go on
working. The card of a picture that was taken down stays and says so. The bytes are in `blobs`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import Final

import orjson

from gateway.cache.blobs import Blobs
from gateway.errors import INVALID_REQUEST, GatewayError
from gateway.images import Picture
from gateway.store.batch import Batch, ask
from gateway.store.commands import DropNote, Enlist, Note, ReadNote, Strike
from gateway.store.protocol import Store

CARDS: Final = "picture"
"""The space of cards, by picture id."""

HOLDERS: Final = "holders"
"""Lists, by digest: the ids of the pictures that have these bytes."""

DERIVED: Final = "derived"
"""Lists, by digest: the digests of what was made from these bytes."""


@dataclass(frozen=True, slots=True)
class Card:
    """What an id stands for."""

    digest: str
    format: str
    fingerprint: str
    is_gone: bool = False
    """It was taken down."""

    def encode(self) -> bytes:
        """The note's bytes."""
        return orjson.dumps(self)


@dataclass(frozen=True, slots=True)
class OpenPicture:
    """A picture that may be shown."""

    digest: str
    """SHA-256 of `data`, hex."""
    format: str
    """`png`, `jpeg` or `webp`."""
    data: bytes


def picture_path(picture: Picture) -> str:
    """The path of a picture's link (CONTRACT §4); clients find a name in it that ends in `.png`."""
    return f"/images/img-{picture.id}.{picture.format}"


class Gallery:
    """Hangs pictures and shows them."""

    def __init__(self, store: Store, blobs: Blobs, *, lifetime_seconds: float) -> None:
        self._store = store
        self._blobs = blobs
        self._lifetime_seconds = lifetime_seconds

    def hang(self, batch: Batch, fingerprint: str, pictures: Mapping[int, Picture]) -> None:
        """Writes the cards of an entry's pictures; one that has its card keeps it."""
        life = self._lifetime_seconds
        for picture in pictures.values():
            card = Card(picture.digest, picture.format, fingerprint)
            batch.add(Note(CARDS, picture.id, card.encode(), life, is_new=True))
            batch.add(Enlist(HOLDERS, picture.digest, (picture.id,), life))
            if picture.derived_from is not None:
                batch.add(Enlist(DERIVED, picture.derived_from, (picture.digest,), life))

    def take_off(self, batch: Batch, picture: Picture) -> None:
        """Removes a picture's card, as if it had never hung: its links answer 404."""
        batch.add(DropNote(CARDS, picture.id))
        batch.add(Strike(HOLDERS, picture.digest, (picture.id,)))

    def mark_gone(self, batch: Batch, picture_id: str, card: Card) -> None:
        """From now on its links answer that it was taken down."""
        gone = replace(card, is_gone=True).encode()
        batch.add(Note(CARDS, picture_id, gone, self._lifetime_seconds))

    async def find(self, picture_id: str) -> Card | None:
        """The card of a picture, or None when there never was one, or its time is over."""
        note = await ask(self._store, ReadNote(CARDS, picture_id))
        return None if note is None else Card(**orjson.loads(note))

    async def open(self, picture_id: str) -> OpenPicture:
        """The picture with its bytes. Raises 404 for an unknown id, 410 when they are gone."""
        card = await self.find(picture_id)
        if card is None:
            raise GatewayError(
                "There is no picture of this id.",
                status=HTTPStatus.NOT_FOUND,
                type=INVALID_REQUEST,
                code="picture_not_found",
            )
        data = None if card.is_gone else await self._blobs.view(card.digest, "data")
        if data is None:
            raise GatewayError(
                "This picture is no longer kept.",
                status=HTTPStatus.GONE,
                type=INVALID_REQUEST,
                code="picture_gone",
            )
        return OpenPicture(card.digest, card.format, data)
