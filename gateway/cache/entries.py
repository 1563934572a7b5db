"""Entries: which images a fingerprint has, in which slots; its tags, and whether it is refused.

An entry has slots 0…63, each empty or holding one image. Here an image becomes the bytes of a
slot and back, and fresh is told from expired. The images' own bytes are in `blobs`, their ids
in `gallery`; who fills an empty slot is settled in `flights`.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import orjson
from pydantic import BaseModel, ConfigDict, Field

from gateway.errors import UpstreamFailure
from gateway.images import Image
from gateway.store.batch import Batch, Result
from gateway.store.commands import (
    AddToSet,
    EmptySlots,
    Entry,
    GetValue,
    ReadEntry,
    SetValue,
    Slot,
    StoreImages,
)

TTL_SPREAD: Final = 0.05
"""Lifetimes differ by up to this share, so that what was stored together expires apart."""

TAGS: Final = "tags"
"""Lists, by tag: the fingerprints that were asked for under it."""

MAX_DECODED: Final = 1024
"""Images that are kept as read: what is asked for is asked for again, and cannot change."""

REFUSALS: Final = "refusals"
"""The space of notes, by fingerprint, that say why a question is not asked again."""


class EntriesSettings(BaseModel):
    """How long images stay fresh."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    ttl_seconds: float = Field(default=30 * 86_400, gt=0)
    stale_if_error_seconds: float = Field(default=7 * 86_400, gt=0)
    """How long an entry outlives its last image's time (`stale_if_error`, CONTRACT §6)."""
    refusal_seconds: float = Field(default=600, gt=0)
    """How long it is remembered that a question was refused for its content."""

    @property
    def longest_seconds(self) -> float:
        """After so long nothing of an entry is left."""
        return self.ttl_seconds * (1 + TTL_SPREAD) + self.stale_if_error_seconds


class Entries:
    """Reads and writes the slots of fingerprints."""

    def __init__(
        self, settings: EntriesSettings, *, spread: Callable[[], float] = random.random
    ) -> None:
        self._settings = settings
        self._spread = spread

    def look_up(self, batch: Batch, fingerprint: str) -> Result[Entry]:
        """Asks for everything that the entry holds."""
        return batch.add(ReadEntry(fingerprint))

    def store(
        self,
        batch: Batch,
        fingerprint: str,
        flight: str,
        *,
        images: Mapping[int, Image],
        ttl_seconds: float | None = None,
        displaces: bool = False,
    ) -> Result[Mapping[int, int]]:
        """Puts images into their slots and gives the flight's claims back; repeatable.

        They are fresh for the settings' `ttl`, or for `lifetime_seconds`. If they `displace`, what
        their slots hold moves to the first free ones; else they go there themselves.
        """
        if ttl_seconds is None:
            ttl_seconds = self._lifetime_seconds()
        return batch.add(
            StoreImages(
                fingerprint,
                flight,
                slots={n: Slot(p.id, 0.0, encode_image(p)) for n, p in images.items()},
                ttl_seconds=ttl_seconds,
                stale_if_error_seconds=self._settings.stale_if_error_seconds,
                displaces=displaces,
            )
        )

    def empty(self, batch: Batch, fingerprint: str, images: Mapping[int, str]) -> None:
        """Empties slots, by the ids of the images that they are meant to hold."""
        batch.add(EmptySlots(fingerprint, images))

    def tag(self, batch: Batch, fingerprint: str, tags: Iterable[str]) -> None:
        """Notes under which tags an entry is wanted; they live as long as it can."""
        for tag in tags:
            batch.add(AddToSet(TAGS, tag, (fingerprint,), self._settings.longest_seconds))

    def refuse(self, batch: Batch, fingerprint: str, refusal: UpstreamFailure) -> None:
        """Remembers for good that this question is refused."""
        batch.add(SetValue(REFUSALS, fingerprint, orjson.dumps(refusal.to_dict()), None))

    def store_refusal(self, batch: Batch, fingerprint: str, failure: UpstreamFailure) -> None:
        """Remembers a refusal of the question's content; no other failure (CONTRACT §6)."""
        if is_refusal(failure):
            note = orjson.dumps(failure.to_dict())
            life = self._settings.refusal_seconds
            batch.add(SetValue(REFUSALS, fingerprint, note, life, only_if_absent=True))

    def stale_images(self, entry: Entry, slots: Iterable[int]) -> dict[int, CachedImage]:
        """Those of `slots` that hold an image whose time is over, but not for too long.

        An entry lives as long as its last image: an older one may have had its time before.
        """
        earliest = entry.now - self._settings.stale_if_error_seconds
        return {
            n: read_slot(slot, now=entry.now)
            for n in slots
            if (slot := entry.slots.get(n)) is not None and earliest < slot.expires_at <= entry.now
        }

    def _lifetime_seconds(self) -> float:
        return self._settings.ttl_seconds * (1 + TTL_SPREAD * (2 * self._spread() - 1))


@dataclass(frozen=True, slots=True)
class CachedImage:
    """An image that a slot holds, and for how long yet."""

    image: Image
    ttl_seconds: int
    """Below zero for one whose time is over."""


def refusal_of(batch: Batch, fingerprint: str) -> Result[bytes | None]:
    """Asks whether the question is refused; `read_refusal` reads the answer."""
    return batch.add(GetValue(REFUSALS, fingerprint))


def read_refusal(note: bytes | None) -> UpstreamFailure | None:
    """Why the question is not asked again; None when it may be."""
    return None if note is None else UpstreamFailure.from_dict(orjson.loads(note))


def is_refusal(failure: UpstreamFailure) -> bool:
    """Whether upstream refused what was asked, and would refuse it again (WIRE §2 rows 23, 24).

    An image that was made and then withheld may come out otherwise the next time.
    """
    details = failure.details.get("moderation_details")
    stage = details.get("moderation_stage") if isinstance(details, Mapping) else None
    is_moderated = failure.code == "moderation_blocked" and stage != "output"
    return is_moderated or failure.code == "content_policy_violation"


def fresh_images(entry: Entry, slots: Iterable[int]) -> dict[int, CachedImage]:
    """Those of `slots` that hold an image that has not expired."""
    return {
        n: read_slot(slot, now=entry.now)
        for n in slots
        if (slot := entry.slots.get(n)) is not None and slot.expires_at > entry.now
    }


def read_slot(slot: Slot, *, now: float) -> CachedImage:
    """The image in a slot at the store's time `now`."""
    return CachedImage(decode_image(slot.data), math.floor(slot.expires_at - now))


def encode_image(image: Image) -> bytes:
    """The bytes of a slot: the image as JSON."""
    return orjson.dumps(image, default=dict)


@lru_cache(maxsize=MAX_DECODED)
def decode_image(data: bytes) -> Image:
    """The inverse of `encode_image`."""
    return Image.from_dict(orjson.loads(data))
