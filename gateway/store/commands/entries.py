"""Entries: the slots of a fingerprint, and the leases of those who fill them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gateway.store.protocol import Verb

# ── entries: the slots of a fingerprint, and who is filling them ────────────────────────────


@dataclass(frozen=True, slots=True)
class Slot:
    """What one slot holds: `data` is the room's own encoding, opaque here."""

    picture: str
    """The picture's id; storing the same id twice changes nothing."""
    expires_at: float
    data: bytes


@dataclass(frozen=True, slots=True)
class Entry:
    """The slots of a fingerprint at the store's time `now`; expired slots are among them."""

    now: float
    slots: Mapping[int, Slot]


@dataclass(frozen=True, slots=True)
class ReadEntry(Verb[Entry]):
    """All slots of a fingerprint that hold a picture. Writes nothing."""

    fingerprint: str


@dataclass(frozen=True, slots=True)
class Claimed:
    """Who has which of the slots that were asked for; every asked slot is in exactly one."""

    now: float
    held: Mapping[int, Slot]
    """Slots with a picture that has not expired."""
    mine: tuple[int, ...]
    """Slots that the asking flight has claimed, by this verb or before."""
    others: Mapping[int, str]
    """Slots that another live flight has claimed: slot → flight."""


@dataclass(frozen=True, slots=True)
class Claim(Verb[Claimed]):
    """Claims, for `flight`, those of `slots` that hold no live picture and no live claim.

    A claim lives `lease_seconds`. The flight's id is the fencing token: `Extend`, `Keep` and
    `Release` touch only claims that still carry it.
    """

    fingerprint: str
    slots: tuple[int, ...]
    flight: str
    lease_seconds: float
    ignoring: tuple[str, ...] = ()
    """Ids of pictures that count as none: a slot that holds one of them is empty for this claim."""


@dataclass(frozen=True, slots=True)
class Extend(Verb[bool]):
    """Sets the lease of every claim of `flight` anew. False (and no change) if none is alive."""

    fingerprint: str
    flight: str
    lease_seconds: float


@dataclass(frozen=True, slots=True)
class Release(Verb[None]):
    """Gives back every claim of `flight`."""

    fingerprint: str
    flight: str


@dataclass(frozen=True, slots=True)
class Keep(Verb[Mapping[int, int]]):
    """Puts pictures into their slots and gives back every claim of `flight`.

    `slots` maps each wanted slot to its picture. A picture whose id the entry already holds, in
    whatever slot, stays where it is (so the verb is repeatable). A wanted slot that holds
    another live picture, or that another live flight has claimed, is left alone and the picture
    goes to the lowest slot that is free of both; beyond slot 63 it is dropped.
    `lifetime_seconds` is how long the picture counts as fresh: its `expires_at` becomes now +
    that, on the store's clock, whatever `Slot.expires_at` says. The whole entry lives at least
    `linger_seconds` beyond the last expiry. Answers wanted slot → slot it lies in.

    With `displaces` a wanted slot is taken although it holds another live picture (unless that is
    one of `slots` itself), which moves to the lowest slot that is free when all of `slots` lie;
    beyond slot 63 it is dropped. Claims of others are respected.
    """

    fingerprint: str
    flight: str
    slots: Mapping[int, Slot]
    lifetime_seconds: float
    linger_seconds: float
    displaces: bool = False


@dataclass(frozen=True, slots=True)
class Clear(Verb[None]):
    """Empties slots whose picture is damaged or gone: slot → the id of the picture meant.

    A slot that meanwhile holds another picture is left alone.
    """

    fingerprint: str
    pictures: Mapping[int, str]


@dataclass(frozen=True, slots=True)
class EntriesPage:
    """Some entries, and where the next page begins."""

    entries: Mapping[str, Mapping[int, Slot]]
    """Fingerprint → slots, expired ones among them."""
    after: str | None
    """What the next `ScanEntries` says; None at the end."""


@dataclass(frozen=True, slots=True)
class ScanEntries(Verb[EntriesPage]):
    """About `limit` entries from the mark `after` ("" = the start), in any order.

    An entry that is there from the first page to the last is on at least one of them.
    """

    after: str = ""
    limit: int = 200
