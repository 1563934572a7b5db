"""Entries: the slots of a fingerprint, and the leases of those who fill them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gateway.store.protocol import Command

# ── entries: the slots of a fingerprint, and who is filling them ────────────────────────────


@dataclass(frozen=True, slots=True)
class Slot:
    """What one slot holds: `data` is the room's own encoding, opaque here."""

    image_id: str
    """The image's id; storing the same id twice changes nothing."""
    expires_at: float
    data: bytes


@dataclass(frozen=True, slots=True)
class Entry:
    """The slots of a fingerprint at the store's time `now`; expired slots are among them."""

    now: float
    slots: Mapping[int, Slot]


@dataclass(frozen=True, slots=True)
class ReadEntry(Command[Entry]):
    """All slots of a fingerprint that hold an image. Writes nothing."""

    fingerprint: str


@dataclass(frozen=True, slots=True)
class LeaseResult:
    """Who has which of the slots that were asked for; every asked slot is in exactly one."""

    now: float
    held: Mapping[int, Slot]
    """Slots with an image that has not expired."""
    mine: tuple[int, ...]
    """Slots that the asking flight has claimed, by this verb or before."""
    others: Mapping[int, str]
    """Slots that another live flight has claimed: slot → flight."""


@dataclass(frozen=True, slots=True)
class AcquireLease(Command[LeaseResult]):
    """Claims, for `flight`, those of `slots` that hold no live image and no live claim.

    A claim lives `lease_seconds`. The flight's id is the fencing token: `Extend`, `Keep` and
    `Release` touch only claims that still carry it.
    """

    fingerprint: str
    slots: tuple[int, ...]
    flight: str
    lease_seconds: float
    ignoring: tuple[str, ...] = ()
    """Ids of images that count as none: a slot that holds one of them is empty for this claim."""


@dataclass(frozen=True, slots=True)
class RenewLease(Command[bool]):
    """Sets the lease of every claim of `flight` anew. False (and no change) if none is alive."""

    fingerprint: str
    flight: str
    lease_seconds: float


@dataclass(frozen=True, slots=True)
class ReleaseLease(Command[None]):
    """Gives back every claim of `flight`."""

    fingerprint: str
    flight: str


@dataclass(frozen=True, slots=True)
class StoreImages(Command[Mapping[int, int]]):
    """Puts images into their slots and gives back every claim of `flight`.

    `slots` maps each wanted slot to its image. An image whose id the entry already holds, in
    whatever slot, stays where it is (so the verb is repeatable). A wanted slot that holds
    another live image, or that another live flight has claimed, is left alone and the image
    goes to the lowest slot that is free of both; beyond slot 63 it is dropped.
    `lifetime_seconds` is how long the image counts as fresh: its `expires_at` becomes now +
    that, on the store's clock, whatever `Slot.expires_at` says. The whole entry lives at least
    `linger_seconds` beyond the last expiry. Answers wanted slot → slot it lies in.

    With `displaces` a wanted slot is taken although it holds another live image (unless that is
    one of `slots` itself), which moves to the lowest slot that is free when all of `slots` lie;
    beyond slot 63 it is dropped. Claims of others are respected.
    """

    fingerprint: str
    flight: str
    slots: Mapping[int, Slot]
    ttl_seconds: float
    stale_if_error_seconds: float
    displaces: bool = False


@dataclass(frozen=True, slots=True)
class EmptySlots(Command[None]):
    """Empties slots whose image is damaged or gone: slot → the id of the image meant.

    A slot that meanwhile holds another image is left alone.
    """

    fingerprint: str
    images: Mapping[int, str]


@dataclass(frozen=True, slots=True)
class EntriesPage:
    """Some entries, and where the next page begins."""

    entries: Mapping[str, Mapping[int, Slot]]
    """Fingerprint → slots, expired ones among them."""
    after: str | None
    """What the next `ScanEntries` says; None at the end."""


@dataclass(frozen=True, slots=True)
class ScanEntries(Command[EntriesPage]):
    """About `limit` entries from the mark `after` ("" = the start), in any order.

    An entry that is there from the first page to the last is on at least one of them.
    """

    after: str = ""
    limit: int = 200
