"""The commands of `commands.entries` in SQL."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from gateway.images import MAX_SLOTS
from gateway.store import commands
from gateway.store.commands import Slot
from gateway.store.sqlite.schema import Transaction

# ── entries ─────────────────────────────────────────────────────────────────────────────────


def _read_entry(tx: Transaction, command: commands.ReadEntry) -> commands.Entry:
    return commands.Entry(tx.now, _slots(tx, command.fingerprint))


def _claim(tx: Transaction, command: commands.AcquireLease) -> commands.LeaseResult:
    fresh = {
        index: slot
        for index, slot in _fresh_slots(tx, command.fingerprint).items()
        if slot.image_id not in command.ignoring
    }
    owners = _claims(tx, command.fingerprint)
    asked = [slot for slot in command.slots if slot not in fresh]
    others = {s: owners[s] for s in asked if owners.get(s, command.flight) != command.flight}
    mine = tuple(slot for slot in asked if slot not in others)
    tx.db.executemany(
        "INSERT OR REPLACE INTO claims (fingerprint, slot, flight, gone_at) VALUES (?, ?, ?, ?)",
        [
            (command.fingerprint, slot, command.flight, tx.now + command.lease_seconds)
            for slot in mine
        ],
    )
    held = {slot: fresh[slot] for slot in command.slots if slot in fresh}
    return commands.LeaseResult(tx.now, held, mine, others)


def _extend(tx: Transaction, command: commands.RenewLease) -> bool:
    extended = tx.change(
        "UPDATE claims SET gone_at = ? WHERE fingerprint = ? AND flight = ? AND gone_at > ?",
        tx.now + command.lease_seconds,
        command.fingerprint,
        command.flight,
        tx.now,
    )
    return extended > 0


def _release(tx: Transaction, command: commands.ReleaseLease | commands.StoreImages) -> None:
    tx.change(
        "DELETE FROM claims WHERE fingerprint = ? AND flight = ?",
        command.fingerprint,
        command.flight,
    )


def _keep(tx: Transaction, command: commands.StoreImages) -> Mapping[int, int]:
    _release(tx, command)
    places = _Places.read(tx, command)
    placed = {
        target: slot
        for wanted, slot in sorted(command.slots.items())
        if (target := places.place(wanted, slot.image_id)) is not None
    }
    for index, target in places.moves().items():
        tx.change(
            "UPDATE OR REPLACE slots SET slot = ? WHERE fingerprint = ? AND slot = ?",
            *(target, command.fingerprint, index),
        )
    for target, slot in placed.items():
        _store_slot(tx, command, (target, slot))
    _linger(tx, command)
    lies_in = places.lies_in
    return {w: lies_in[s.image_id] for w, s in command.slots.items() if s.image_id in lies_in}


@dataclass(slots=True)
class _Places:
    """Where the images of an entry lie while a `Keep` finds places for its own."""

    lies_in: dict[str, int]
    """Image → slot, expired ones among them."""
    taken: set[int]
    """Slots that nothing may be put into."""
    displaceable: dict[int, str]
    """Slots whose live image has to make way: slot → image."""
    displaced: dict[int, str] = field(default_factory=dict)

    @classmethod
    def read(cls, tx: Transaction, command: commands.StoreImages) -> _Places:
        held = _slots(tx, command.fingerprint)
        claimed = _claims(tx, command.fingerprint)
        fresh = {index: slot.image_id for index, slot in held.items() if slot.expires_at > tx.now}
        own = {slot.image_id for slot in command.slots.values()}
        displaceable = {
            index: image
            for index, image in fresh.items()
            if command.displaces and index not in claimed and image not in own
        }
        lies_in = {slot.image_id: index for index, slot in held.items()}
        return cls(lies_in, {*fresh, *claimed}, displaceable)

    def place(self, wanted: int, image: str) -> int | None:
        """The slot that an image goes to; None if it lies in one, or there is none left."""
        if image in self.lies_in:
            return None
        if wanted in self.displaceable:
            self.displaced[wanted] = self.displaceable.pop(wanted)
            self.taken.discard(wanted)
        return self._occupy(_free_slot(wanted, self.taken), image)

    def moves(self) -> dict[int, int]:
        """What was displaced goes to what is free in the end: old slot → new slot."""
        moved = {
            index: self._occupy(_free_slot(index, self.taken), image)
            for index, image in self.displaced.items()
        }
        return {index: target for index, target in moved.items() if target is not None}

    def _occupy(self, target: int | None, image: str) -> int | None:
        if target is not None:
            self.taken.add(target)
            self.lies_in = {p: index for p, index in self.lies_in.items() if index != target}
            self.lies_in[image] = target
        return target


def _free_slot(wanted: int, taken: set[int]) -> int | None:
    """The wanted slot, else the lowest free one, else None."""
    if wanted not in taken:
        return wanted
    return next((slot for slot in range(MAX_SLOTS) if slot not in taken), None)


def _store_slot(tx: Transaction, command: commands.StoreImages, placed: tuple[int, Slot]) -> None:
    index, slot = placed
    expires_at = tx.now + command.ttl_seconds
    tx.change(
        "INSERT OR REPLACE INTO slots (fingerprint, slot, image, expires_at, data, gone_at)"
        " VALUES (?, ?, ?, ?, ?, ?)",
        *(command.fingerprint, index, slot.image_id, expires_at, slot.data),
        expires_at + command.stale_if_error_seconds,
    )


def _linger(tx: Transaction, command: commands.StoreImages) -> None:
    """No slot of the entry goes before the one that lives longest."""
    tx.change(
        "UPDATE slots SET gone_at = (SELECT max(gone_at) FROM slots WHERE fingerprint = ?)"
        " WHERE fingerprint = ? AND gone_at > ?",
        command.fingerprint,
        command.fingerprint,
        tx.now,
    )


def _clear(tx: Transaction, command: commands.EmptySlots) -> None:
    tx.db.executemany(
        "DELETE FROM slots WHERE fingerprint = ? AND slot = ? AND image = ?",
        [(command.fingerprint, slot, image) for slot, image in command.images.items()],
    )


def _scan_entries(tx: Transaction, command: commands.ScanEntries) -> commands.EntriesPage:
    rows = tx.all(
        "SELECT fingerprint, slot, image, expires_at, data FROM slots WHERE fingerprint IN"
        " (SELECT DISTINCT fingerprint FROM slots WHERE fingerprint > ? AND +gone_at > ?"
        " ORDER BY fingerprint LIMIT ?) AND +gone_at > ? ORDER BY fingerprint, slot",
        *(command.after, tx.now, command.limit, tx.now),
    )
    entries: dict[str, dict[int, Slot]] = {}
    for fingerprint, index, *slot in rows:
        entries.setdefault(fingerprint, {})[index] = Slot(*slot)
    return commands.EntriesPage(entries, max(entries) if len(entries) == command.limit else None)


def _slots(tx: Transaction, fingerprint: str) -> dict[int, Slot]:
    """Every slot of the entry that holds an image, expired or not."""
    rows = tx.all(
        "SELECT slot, image, expires_at, data FROM slots"
        " WHERE fingerprint = ? AND gone_at > ? ORDER BY slot",
        fingerprint,
        tx.now,
    )
    return {index: Slot(image, expires_at, data) for index, image, expires_at, data in rows}


def _fresh_slots(tx: Transaction, fingerprint: str) -> dict[int, Slot]:
    slots = _slots(tx, fingerprint)
    return {index: slot for index, slot in slots.items() if slot.expires_at > tx.now}


def _claims(tx: Transaction, fingerprint: str) -> dict[int, str]:
    """The live claims of an entry: slot → flight."""
    return dict(
        tx.all(
            "SELECT slot, flight FROM claims WHERE fingerprint = ? AND gone_at > ?",
            fingerprint,
            tx.now,
        )
    )
