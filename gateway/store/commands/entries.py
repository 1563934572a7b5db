"""Entries: the slots of a fingerprint, and the leases of flights that fill them.

A slot contains an image, is leased by a flight, or is empty. An expired image or lease counts as
none. Slots are numbered 0 to 63. Times are Unix seconds on the store's clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field

from gateway.frozen import frozen
from gateway.store.protocol import Command


@frozen
class Slot:
    """The image of a slot."""

    image_id: str
    """Storing an image with the same id twice changes nothing."""
    expires_at: float
    data: bytes
    """The cache's own encoding, opaque to the store."""
    stored_at: float = field(default=0.0, compare=False)
    """When `StoreImages` stored it."""


@frozen
class Entry:
    """All slots of a fingerprint that contain an image, expired ones included.

    `now` is the store's time.
    """

    now: float
    slots: Mapping[int, Slot]


@frozen
class ReadEntry(Command[Entry]):
    """Reads an entry, which is empty if there is none."""

    fingerprint: str


@frozen
class LeaseResult:
    """The state of each requested slot, which is in exactly one of the three."""

    now: float
    cached: Mapping[int, Slot]
    """Slots with an image that has not expired."""
    acquired: tuple[int, ...]
    """Slots that this flight leases, by this command or an earlier one."""
    leased: Mapping[int, str]
    """Slots that another flight leases: slot → flight."""


@frozen
class AcquireLease(Command[LeaseResult]):
    """Leases to `flight` those of `slots` that are empty.

    A lease ends after `lease_seconds`. The flight's id is the fencing token: `RenewLease`,
    `StoreImages` and `ReleaseLease` only touch leases of that flight.
    """

    fingerprint: str
    slots: tuple[int, ...]
    flight: str
    lease_seconds: float
    ignoring: tuple[str, ...] = ()
    """Ids of images to replace: a slot with one of them counts as empty here."""


@frozen
class RenewLease(Command[bool]):
    """Sets the time left of every lease of `flight`. False, and no change, if all have expired."""

    fingerprint: str
    flight: str
    lease_seconds: float


@frozen
class ReleaseLease(Command[None]):
    """Ends every lease of `flight`."""

    fingerprint: str
    flight: str


@frozen
class StoreImages(Command[Mapping[int, int]]):
    """Puts images into slots and ends every lease of `flight`. Returns wanted slot → actual slot.

    `slots` maps wanted slots to images. If the entry already contains an image's id, in any slot,
    that image stays where it is, so the command can be repeated. If the wanted slot contains
    another image or is leased to another flight, the image goes to the lowest empty slot; if there
    is none, it is dropped.

    Each image expires after `ttl_seconds`; `Slot.expires_at` and `stored_at` are ignored. The entry
    is deleted `stale_if_error_seconds` after its last image has expired, or later.

    With `displaces` an image takes its wanted slot even if that contains another image, unless
    that is one of `slots` too. The displaced image goes to the lowest slot that is empty after all
    of `slots` are stored; if there is none, it is dropped. Slots leased to other flights are not
    taken.
    """

    fingerprint: str
    flight: str
    slots: Mapping[int, Slot]
    ttl_seconds: float
    stale_if_error_seconds: float
    displaces: bool = False


@frozen
class EmptySlots(Command[None]):
    """Removes images that are damaged or lost: slot → image id.

    A slot that contains another image by now is left alone.
    """

    fingerprint: str
    images: Mapping[int, str]


@frozen
class ProlongSlots(Command[None]):
    """Lets images expire `ttl_seconds` from now, unless they expire later: slot → image id.

    A slot that contains another image by now is left alone. The entry is deleted
    `stale_if_error_seconds` after its last image has expired, or later. `stored_at` stays.
    """

    fingerprint: str
    images: Mapping[int, str]
    ttl_seconds: float
    stale_if_error_seconds: float


@frozen
class EntriesPage:
    """Some entries: fingerprint → slots, expired images included."""

    entries: Mapping[str, Mapping[int, Slot]]
    after: str | None
    """The cursor for the next `ScanEntries`; None on the last page."""


@frozen
class ScanEntries(Command[EntriesPage]):
    """About `limit` entries, or fewer, from the cursor `after` ("": the start), in any order.

    Entries that exist from the first page to the last are on at least one page.
    """

    after: str = ""
    limit: int = 200
