"""Entries: which pictures a fingerprint has, in which slots; its tags, and whether it is refused.

An entry has slots 0…63, each empty or holding one picture. Here a picture becomes the bytes of a
slot and back, and fresh is told from expired. The pictures' own bytes are in `blobs`, their ids
in `gallery`; who fills an empty slot is settled in `flights`.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import orjson
from pydantic import BaseModel, ConfigDict, Field

from gateway.errors import UpstreamFailure
from gateway.images import Picture, Usage
from gateway.store.batch import Batch, Handle
from gateway.store.commands import Clear, Enlist, Entry, Keep, Note, ReadEntry, ReadNote, Slot

TTL_SPREAD: Final = 0.05
"""Lifetimes differ by up to this share, so that what was stored together expires apart."""

TAGS: Final = "tags"
"""Lists, by tag: the fingerprints that were asked for under it."""

MOST_DECODED: Final = 1024
"""Pictures that are kept as read: what is asked for is asked for again, and cannot change."""

REFUSALS: Final = "refusals"
"""The space of notes, by fingerprint, that say why a question is not asked again."""


class EntriesSettings(BaseModel):
    """How long pictures stay fresh."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    ttl_seconds: float = Field(default=30 * 86_400, gt=0)
    linger_seconds: float = Field(default=7 * 86_400, gt=0)
    """How long an entry outlives its last picture's time (`stale_if_error`, CONTRACT §6)."""
    refusal_seconds: float = Field(default=600, gt=0)
    """How long it is remembered that a question was refused for its content."""

    @property
    def longest_seconds(self) -> float:
        """After so long nothing of an entry is left."""
        return self.ttl_seconds * (1 + TTL_SPREAD) + self.linger_seconds


class Entries:
    """Reads and writes the slots of fingerprints."""

    def __init__(
        self, settings: EntriesSettings, *, spread: Callable[[], float] = random.random
    ) -> None:
        self._settings = settings
        self._spread = spread

    def look_up(self, batch: Batch, fingerprint: str) -> Handle[Entry]:
        """Asks for everything that the entry holds."""
        return batch.add(ReadEntry(fingerprint))

    def keep(
        self,
        batch: Batch,
        fingerprint: str,
        flight: str,
        *,
        pictures: Mapping[int, Picture],
        lifetime_seconds: float | None = None,
        displaces: bool = False,
    ) -> Handle[Mapping[int, int]]:
        """Puts pictures into their slots and gives the flight's claims back; repeatable.

        They are fresh for the settings' `ttl`, or for `lifetime_seconds`. If they `displace`, what
        their slots hold moves to the first free ones; else they go there themselves.
        """
        if lifetime_seconds is None:
            lifetime_seconds = self._lifetime_seconds()
        return batch.add(
            Keep(
                fingerprint,
                flight,
                slots={n: Slot(p.id, 0.0, encode_picture(p)) for n, p in pictures.items()},
                lifetime_seconds=lifetime_seconds,
                linger_seconds=self._settings.linger_seconds,
                displaces=displaces,
            )
        )

    def empty(self, batch: Batch, fingerprint: str, pictures: Mapping[int, str]) -> None:
        """Empties slots, by the ids of the pictures that they are meant to hold."""
        batch.add(Clear(fingerprint, pictures))

    def tag(self, batch: Batch, fingerprint: str, tags: Iterable[str]) -> None:
        """Notes under which tags an entry is wanted; they live as long as it can."""
        for tag in tags:
            batch.add(Enlist(TAGS, tag, (fingerprint,), self._settings.longest_seconds))

    def refuse(self, batch: Batch, fingerprint: str, refusal: UpstreamFailure) -> None:
        """Remembers for good that this question is refused."""
        batch.add(Note(REFUSALS, fingerprint, orjson.dumps(refusal.to_dict()), None))

    def remember(self, batch: Batch, fingerprint: str, failure: UpstreamFailure) -> None:
        """Remembers a refusal of the question's content; no other failure (CONTRACT §6)."""
        if is_refusal(failure):
            note = orjson.dumps(failure.to_dict())
            life = self._settings.refusal_seconds
            batch.add(Note(REFUSALS, fingerprint, note, life, is_new=True))

    def stale_pictures(self, entry: Entry, slots: Iterable[int]) -> dict[int, Held]:
        """Those of `slots` that hold a picture whose time is over, but not for too long.

        An entry lives as long as its last picture: an older one may have had its time before.
        """
        earliest = entry.now - self._settings.linger_seconds
        return {
            n: read_slot(slot, now=entry.now)
            for n in slots
            if (slot := entry.slots.get(n)) is not None and earliest < slot.expires_at <= entry.now
        }

    def _lifetime_seconds(self) -> float:
        return self._settings.ttl_seconds * (1 + TTL_SPREAD * (2 * self._spread() - 1))


@dataclass(frozen=True, slots=True)
class Held:
    """A picture that a slot holds, and for how long yet."""

    picture: Picture
    ttl_seconds: int
    """Below zero for one whose time is over."""


def look_for_refusal(batch: Batch, fingerprint: str) -> Handle[bytes | None]:
    """Asks whether the question is refused; `read_refusal` reads the answer."""
    return batch.add(ReadNote(REFUSALS, fingerprint))


def read_refusal(note: bytes | None) -> UpstreamFailure | None:
    """Why the question is not asked again; None when it may be."""
    return None if note is None else UpstreamFailure.from_dict(orjson.loads(note))


def is_refusal(failure: UpstreamFailure) -> bool:
    """Whether upstream refused what was asked, and would refuse it again (WIRE §2 rows 23, 24).

    A picture that was made and then withheld may come out otherwise the next time.
    """
    details = failure.details.get("moderation_details")
    stage = details.get("moderation_stage") if isinstance(details, Mapping) else None
    is_moderated = failure.code == "moderation_blocked" and stage != "output"
    return is_moderated or failure.code == "content_policy_violation"


def fresh_pictures(entry: Entry, slots: Iterable[int]) -> dict[int, Held]:
    """Those of `slots` that hold a picture that has not expired."""
    return {
        n: read_slot(slot, now=entry.now)
        for n in slots
        if (slot := entry.slots.get(n)) is not None and slot.expires_at > entry.now
    }


def read_slot(slot: Slot, *, now: float) -> Held:
    """The picture in a slot at the store's time `now`."""
    return Held(decode_picture(slot.data), math.floor(slot.expires_at - now))


def encode_picture(picture: Picture) -> bytes:
    """The bytes of a slot: the picture as JSON."""
    return orjson.dumps(picture, default=dict)


@lru_cache(maxsize=MOST_DECODED)
def decode_picture(data: bytes) -> Picture:
    """The inverse of `encode_picture`."""
    return picture_from_dict(orjson.loads(data))


def picture_from_dict(data: Mapping[str, Any]) -> Picture:
    """A picture from the JSON object that orjson makes of one."""
    usage = data.get("usage")
    return Picture(**{**data, "usage": Usage(**usage) if usage else None})
