"""Entries: the slots of a fingerprint and the leases on them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from gateway.images import MAX_SLOTS
from gateway.store import commands
from gateway.store.commands import Slot
from gateway.store.sqlite.commands.registry import reads, writes
from gateway.store.sqlite.transaction import Transaction


@reads(commands.ReadEntry)
def read_entry(tx: Transaction, command: commands.ReadEntry) -> commands.Entry:
    return commands.Entry(tx.now, _read_slots(tx, command.fingerprint))


@writes(commands.AcquireLease)
def acquire_lease(tx: Transaction, command: commands.AcquireLease) -> commands.LeaseResult:
    fresh = {
        index: slot
        for index, slot in _read_slots(tx, command.fingerprint).items()
        if slot.expires_at > tx.now and slot.image_id not in command.ignoring
    }
    filled = {index: fresh[index] for index in command.slots if index in fresh}
    empty = [index for index in command.slots if index not in fresh]
    _end_future_leases(tx, command.fingerprint)
    leases = _read_leases(tx, command.fingerprint)
    others = {i: leases[i] for i in empty if leases.get(i, command.flight) != command.flight}
    acquired = tuple(index for index in empty if index not in others)
    granted = (tx.steady, tx.steady + command.lease_seconds)
    tx.execute_many(
        "INSERT OR REPLACE INTO leases (fingerprint, slot, flight, granted_at, remove_after)"
        " VALUES (?, ?, ?, ?, ?)",
        [
            (command.fingerprint, index, command.flight, *granted)
            for index in acquired
            if index not in leases  # a lease of this flight is not shortened
        ],
    )
    return commands.LeaseResult(tx.now, filled, acquired, others)


@writes(commands.RenewLease)
def renew_lease(tx: Transaction, command: commands.RenewLease) -> bool:
    renewed = tx.execute(
        "UPDATE leases SET granted_at = ?, remove_after = ?"
        " WHERE fingerprint = ? AND flight = ? AND remove_after > ?",
        (
            tx.steady,
            tx.steady + command.lease_seconds,
            command.fingerprint,
            command.flight,
            tx.steady,
        ),
    )
    return renewed > 0


@writes(commands.ReleaseLease)
def release_lease(tx: Transaction, command: commands.ReleaseLease) -> None:
    _delete_leases(tx, command.fingerprint, command.flight)


@writes(commands.StoreImages)
def store_images(tx: Transaction, command: commands.StoreImages) -> Mapping[int, int]:
    fingerprint = command.fingerprint
    # First, because a leased slot counts as occupied, and these are for the images.
    _delete_leases(tx, fingerprint, command.flight)
    placement = _Placement.of(tx, command)
    placed = {}
    for wanted, slot in sorted(command.slots.items()):
        target = placement.assign_slot(wanted, slot.image_id)
        if target is not None:
            placed[target] = slot
    # Displaced images move first: their rows are where the new ones go.
    for index, target in placement.move_displaced().items():
        tx.execute(
            "UPDATE OR REPLACE slots SET slot = ? WHERE fingerprint = ? AND slot = ?",
            (target, fingerprint, index),
        )
    expires_at = tx.now + command.ttl_seconds
    remove_after = expires_at + command.stale_if_error_seconds
    tx.execute_many(
        "INSERT OR REPLACE INTO slots"
        " (fingerprint, slot, image_id, expires_at, data, stored_at, remove_after)"
        " VALUES (?, ?, ?, ?, ?, ?, ?)",
        [
            (fingerprint, index, slot.image_id, expires_at, slot.data, tx.now, remove_after)
            for index, slot in placed.items()
        ],
    )
    _keep_whole(tx, fingerprint)
    slot_of = placement.slot_of
    return {
        wanted: slot_of[slot.image_id]
        for wanted, slot in command.slots.items()
        if slot.image_id in slot_of
    }


def _keep_whole(tx: Transaction, fingerprint: str) -> None:
    """An entry is removed as a whole: its slots stay until the last of them may go."""
    tx.execute(
        "UPDATE slots SET remove_after ="
        " (SELECT max(remove_after) FROM slots WHERE fingerprint = ?)"
        " WHERE fingerprint = ? AND remove_after > ?",
        (fingerprint, fingerprint, tx.now),
    )


@dataclass(slots=True)
class _Placement:
    """Finds slots for the images of a `StoreImages`. Only plans; the tables stay as they are."""

    slot_of: dict[str, int]
    """Image id → slot, for images that have one; stale images are among them."""
    occupied: set[int]
    """Slots with a fresh image or a lease."""
    leased: set[int]
    """Slots without a fresh image that another flight has leased. One that was wanted is filled all
    the same: that flight finds another slot for its image."""
    displaceable: dict[int, str]
    """Slots whose fresh image has to make way: slot → image id."""
    displaced: dict[int, str] = field(default_factory=dict)
    """Slots that were taken from a fresh image: slot → id of that image."""

    @classmethod
    def of(cls, tx: Transaction, command: commands.StoreImages) -> _Placement:
        slots = _read_slots(tx, command.fingerprint)
        leases = _read_leases(tx, command.fingerprint)
        fresh = {index: slot.image_id for index, slot in slots.items() if slot.expires_at > tx.now}
        own = {slot.image_id for slot in command.slots.values()}
        displaceable = {
            index: image_id
            for index, image_id in fresh.items()
            if command.displaces and index not in leases and image_id not in own
        }
        slot_of = {slot.image_id: index for index, slot in slots.items()}
        leased = leases.keys() - fresh.keys()
        return cls(slot_of, {*fresh, *leases}, leased, displaceable)

    def assign_slot(self, wanted: int, image_id: str) -> int | None:
        """The slot to store an image in; None if it is stored already or no slot is free."""
        if image_id in self.slot_of:
            return None
        if wanted in self.displaceable:
            self.displaced[wanted] = self.displaceable.pop(wanted)
            self.occupied.discard(wanted)
        elif wanted in self.leased:
            self.leased.discard(wanted)
            self.occupied.discard(wanted)
        return self._occupy(wanted, image_id)

    def move_displaced(self) -> dict[int, int]:
        """Finds slots for the displaced images: old slot → new slot, while there are free ones."""
        targets = {
            index: self._occupy(index, image_id) for index, image_id in self.displaced.items()
        }
        return {index: target for index, target in targets.items() if target is not None}

    def _occupy(self, wanted: int, image_id: str) -> int | None:
        """Gives an image its wanted slot, else the lowest free one, else None."""
        candidates = (wanted, *range(MAX_SLOTS))
        target = next((index for index in candidates if index not in self.occupied), None)
        if target is not None:
            self.occupied.add(target)
            # A stale image in this slot will be overwritten.
            self.slot_of = {i: index for i, index in self.slot_of.items() if index != target}
            self.slot_of[image_id] = target
        return target


@writes(commands.EmptySlots)
def empty_slots(tx: Transaction, command: commands.EmptySlots) -> None:
    tx.execute_many(
        "DELETE FROM slots WHERE fingerprint = ? AND slot = ? AND image_id = ?",
        [(command.fingerprint, index, image_id) for index, image_id in command.images.items()],
    )


@writes(commands.ProlongSlots)
def prolong_slots(tx: Transaction, command: commands.ProlongSlots) -> None:
    expires_at = tx.now + command.ttl_seconds
    remove_after = expires_at + command.stale_if_error_seconds
    tx.execute_many(
        "UPDATE slots SET expires_at = ?, remove_after = ?"
        " WHERE fingerprint = ? AND slot = ? AND image_id = ? AND expires_at < ?"
        " AND remove_after > ?",
        [
            (expires_at, remove_after, command.fingerprint, index, image_id, expires_at, tx.now)
            for index, image_id in command.images.items()
        ],
    )
    _keep_whole(tx, command.fingerprint)


@reads(commands.ScanEntries)
def scan_entries(tx: Transaction, command: commands.ScanEntries) -> commands.EntriesPage:
    # A page of removable and other entries: passing over the removable ones would take as long as
    # there are many.
    found = tx.fetch_all(
        "SELECT DISTINCT fingerprint FROM slots WHERE fingerprint > ? ORDER BY fingerprint LIMIT ?",
        (command.after, command.limit),
    )
    entries = {name: slots for (name,) in found if (slots := _read_slots(tx, name))}
    return commands.EntriesPage(entries, found[-1][0] if len(found) == command.limit else None)


def _read_slots(tx: Transaction, fingerprint: str) -> dict[int, Slot]:
    """The slots of an entry that have an image, fresh or stale."""
    rows = tx.fetch_all(
        "SELECT slot, image_id, expires_at, data, stored_at FROM slots"
        " WHERE fingerprint = ? AND remove_after > ? ORDER BY slot",
        (fingerprint, tx.now),
    )
    return {index: Slot(*columns) for index, *columns in rows}


def _read_leases(tx: Transaction, fingerprint: str) -> dict[int, str]:
    """Slot → the flight that has the lease."""
    rows = tx.fetch_all(
        "SELECT slot, flight FROM leases WHERE fingerprint = ? AND remove_after > ?",
        (fingerprint, tx.steady),
    )
    return dict(rows)


def _end_future_leases(tx: Transaction, fingerprint: str) -> None:
    """A lease from the future, of a clock that went back, lasts for its own length from now on."""
    tx.execute(
        "UPDATE leases SET granted_at = ?, remove_after = ? + remove_after - granted_at"
        " WHERE fingerprint = ? AND granted_at > ?",
        (tx.steady, tx.steady, fingerprint, tx.steady),
    )


def _delete_leases(tx: Transaction, fingerprint: str, flight: str) -> None:
    tx.execute("DELETE FROM leases WHERE fingerprint = ? AND flight = ?", (fingerprint, flight))
