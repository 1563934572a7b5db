"""Entries: the images of a fingerprint by slot, and its refusal.

An entry has slots 0…63, each empty or with one image. This module encodes an image as the bytes of
a slot, decodes it again, and decides whether it is fresh or expired. The negative cache has, by
fingerprint, the refusals of prompts that upstream would refuse again. `blobs` has the bytes of
images, `image_index` finds them for links, `tags` for purges, and `flights` decides which
request fills a slot.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final

import orjson
from pydantic import BaseModel, ConfigDict, Field

from gateway.errors import UpstreamFailure
from gateway.images import Image
from gateway.store.batch import Batch, Result
from gateway.store.commands import (
    AddToBoundedSets,
    BoundedSet,
    EmptySlots,
    Entry,
    GetValue,
    ProlongSlots,
    ReadEntry,
    SetValue,
    Slot,
    StoreImages,
)
from gateway.stored import read_stored

TTL_JITTER: Final = 0.05
"""Lifetimes differ by up to this share, so that images stored together do not expire together."""

REFUSALS: Final = "refusals"
"""The space of the negative cache: refusals, by fingerprint."""

MAX_KEY_REFUSALS: Final = 2000
"""Refusals that one gateway key has in the negative cache. They cost it nothing."""

MAX_DECODED: Final = 1024
"""Images that stay decoded: popular ones are read often, and never change."""

LOST: Final = Image(
    id="", digest="0" * 64, format="png", width=0, height=0, size_bytes=0, created_at=0.0
)
"""The image of a slot that cannot be read: like any image without bytes, it is bought again."""


class EntriesSettings(BaseModel):
    """How long images stay fresh."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    ttl_seconds: float = Field(default=30 * 86_400, gt=0)
    stale_if_error_seconds: float = Field(default=7 * 86_400, gt=0)
    """How long an entry outlives its last fresh image (`docs/reference/cache.md#stale-images`)."""
    refusal_seconds: float = Field(default=600, gt=0)
    """How long a refusal stays in the negative cache."""

    @property
    def shortest_seconds(self) -> float:
        """The shortest time for which an image stays fresh."""
        return self.ttl_seconds * (1 - TTL_JITTER)

    @property
    def longest_seconds(self) -> float:
        """The longest lifetime of an entry."""
        return self.ttl_seconds * (1 + TTL_JITTER) + self.stale_if_error_seconds


@dataclass(frozen=True, slots=True)
class CachedImage:
    """An image of a slot, and how long it stays fresh."""

    image: Image
    ttl_seconds: int
    """Negative for an expired image."""


class Entries:
    """Reads and writes entries."""

    def __init__(
        self, settings: EntriesSettings, *, jitter: Callable[[], float] = random.random
    ) -> None:
        self._settings = settings
        self._jitter = jitter

    def look_up(self, batch: Batch, fingerprint: str) -> Result[Entry]:
        """Reads an entry, which may be empty."""
        return batch.add(ReadEntry(fingerprint))

    def store(
        self,
        batch: Batch,
        fingerprint: str,
        lease: str,
        *,
        images: Mapping[int, Image],
        ttl_seconds: float | None = None,
        displaces: bool = False,
    ) -> Result[Mapping[int, int]]:
        """Puts images into their slots and releases the lease; may be repeated.

        They stay fresh for `ttl_seconds`, by default those of the settings. An image whose slot
        has another one goes to the first free slot; with `displaces`, the other one goes there.
        """
        if ttl_seconds is None:
            jitter = TTL_JITTER * (2 * self._jitter() - 1)
            ttl_seconds = self._settings.ttl_seconds * (1 + jitter)
        return batch.add(
            StoreImages(
                fingerprint,
                lease,
                # 0.0, because the store sets the expiry by its own clock.
                slots={n: Slot(i.id, 0.0, encode_image(i)) for n, i in images.items()},
                ttl_seconds=ttl_seconds,
                stale_if_error_seconds=self._settings.stale_if_error_seconds,
                displaces=displaces,
            )
        )

    def empty(self, batch: Batch, fingerprint: str, slots: Mapping[int, str]) -> None:
        """Empties slots, each only if it still has the image with the given id."""
        batch.add(EmptySlots(fingerprint, slots))

    def prolong(self, batch: Batch, fingerprint: str, slots: Mapping[int, str]) -> None:
        """Lets images be fresh for the settings' time from now on: slot → image id."""
        seconds = self._settings.ttl_seconds, self._settings.stale_if_error_seconds
        batch.add(ProlongSlots(fingerprint, slots, *seconds))

    @property
    def ttl_seconds(self) -> float:
        """How long images stay fresh."""
        return self._settings.ttl_seconds

    def stale_images(self, entry: Entry, slots: Iterable[int]) -> dict[int, CachedImage]:
        """The expired images of `slots` that are within the stale-if-error window."""
        # The store removes an entry after the window of its last image; others may have left it
        # before.
        earliest = entry.now - self._settings.stale_if_error_seconds
        return {
            n: read_slot(slot, now=entry.now)
            for n in slots
            if (slot := entry.slots.get(n)) is not None and earliest < slot.expires_at <= entry.now
        }

    # ── the negative cache ──────────────────────────────────────────────────────────────────

    def refuse(self, batch: Batch, fingerprint: str, refusal: UpstreamFailure) -> None:
        """Refuses a fingerprint for good: its prompt was taken down."""
        batch.add(SetValue(REFUSALS, fingerprint, orjson.dumps(refusal.to_dict()), None))

    def reserve_refusal(self, key_id: str, fingerprint: str) -> AddToBoundedSets:
        """The command that returns the fingerprint if the key has room for its refusal."""
        bounds = (BoundedSet(REFUSALS, key_id, MAX_KEY_REFUSALS),)
        return AddToBoundedSets(bounds, (fingerprint,), self._settings.refusal_seconds)

    def store_refusal(self, batch: Batch, fingerprint: str, failure: UpstreamFailure) -> None:
        """Stores a refusal of the prompt's content (`docs/reference/cache.md#refusals`)."""
        encoded = orjson.dumps(failure.to_dict())
        ttl_seconds = self._settings.refusal_seconds
        # `only_if_absent`: the refusal of a take-down, which never expires, must stay.
        batch.add(SetValue(REFUSALS, fingerprint, encoded, ttl_seconds, only_if_absent=True))


def look_up_refusal(batch: Batch, fingerprint: str) -> Result[bytes | None]:
    """Reads the refusal of a fingerprint, for `decode_refusal`."""
    return batch.add(GetValue(REFUSALS, fingerprint))


def decode_refusal(encoded: bytes | None) -> UpstreamFailure | None:
    """A refusal of the negative cache; None if there is none."""
    return None if encoded is None else read_stored("refusal", encoded, _decode_refusal)


def _decode_refusal(encoded: bytes) -> UpstreamFailure:
    return UpstreamFailure.from_dict(orjson.loads(encoded))


# ── reading slots ───────────────────────────────────────────────────────────────────────────


def fresh_images(
    entry: Entry, slots: Iterable[int], *, with_expired: bool = False
) -> dict[int, CachedImage]:
    """The images of `slots` that have not expired, or all of them."""
    return {
        n: read_slot(slot, now=entry.now)
        for n in slots
        if (slot := entry.slots.get(n)) is not None
        and (with_expired or slot.expires_at > entry.now)
    }


def read_slot(slot: Slot, *, now: float) -> CachedImage:
    """The image of a slot at the store's time `now`."""
    image = decode_image(slot.data)
    if image is LOST:
        image = replace(LOST, id=slot.image_id)  # by which its slot is emptied
    return CachedImage(image, math.floor(slot.expires_at - now))


def encode_image(image: Image) -> bytes:
    """The bytes of a slot: the image as JSON."""
    # `default` encodes each MappingProxyType, which orjson does not know.
    return orjson.dumps(image, default=dict)


@lru_cache(maxsize=MAX_DECODED)
def decode_image(data: bytes) -> Image:
    """The inverse of `encode_image`; `LOST` for other bytes."""
    image = read_stored("slot", data, _decode_image)
    return LOST if image is None else image


def _decode_image(data: bytes) -> Image:
    image = Image.from_dict(orjson.loads(data))
    texts: list[object] = [image.id, image.digest]
    if not all(isinstance(text, str) for text in texts):
        raise TypeError
    return image
