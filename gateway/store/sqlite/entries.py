"""The commands of `commands.entries` in SQL."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from gateway.images import MAX_SLOTS
from gateway.store import commands as verbs
from gateway.store.commands import Slot
from gateway.store.sqlite.schema import Transaction

# ── entries ─────────────────────────────────────────────────────────────────────────────────


def _read_entry(tx: Transaction, verb: verbs.ReadEntry) -> verbs.Entry:
    return verbs.Entry(tx.now, _slots(tx, verb.fingerprint))


def _claim(tx: Transaction, verb: verbs.Claim) -> verbs.Claimed:
    fresh = {
        index: slot
        for index, slot in _fresh_slots(tx, verb.fingerprint).items()
        if slot.picture not in verb.ignoring
    }
    owners = _claims(tx, verb.fingerprint)
    asked = [slot for slot in verb.slots if slot not in fresh]
    others = {s: owners[s] for s in asked if owners.get(s, verb.flight) != verb.flight}
    mine = tuple(slot for slot in asked if slot not in others)
    tx.db.executemany(
        "INSERT OR REPLACE INTO claims (fingerprint, slot, flight, gone_at) VALUES (?, ?, ?, ?)",
        [(verb.fingerprint, slot, verb.flight, tx.now + verb.lease_seconds) for slot in mine],
    )
    held = {slot: fresh[slot] for slot in verb.slots if slot in fresh}
    return verbs.Claimed(tx.now, held, mine, others)


def _extend(tx: Transaction, verb: verbs.Extend) -> bool:
    extended = tx.change(
        "UPDATE claims SET gone_at = ? WHERE fingerprint = ? AND flight = ? AND gone_at > ?",
        tx.now + verb.lease_seconds,
        verb.fingerprint,
        verb.flight,
        tx.now,
    )
    return extended > 0


def _release(tx: Transaction, verb: verbs.Release | verbs.Keep) -> None:
    tx.change(
        "DELETE FROM claims WHERE fingerprint = ? AND flight = ?", verb.fingerprint, verb.flight
    )


def _keep(tx: Transaction, verb: verbs.Keep) -> Mapping[int, int]:
    _release(tx, verb)
    places = _Places.read(tx, verb)
    placed = {
        target: slot
        for wanted, slot in sorted(verb.slots.items())
        if (target := places.place(wanted, slot.picture)) is not None
    }
    for index, target in places.moves().items():
        tx.change(
            "UPDATE OR REPLACE slots SET slot = ? WHERE fingerprint = ? AND slot = ?",
            *(target, verb.fingerprint, index),
        )
    for target, slot in placed.items():
        _store_slot(tx, verb, (target, slot))
    _linger(tx, verb)
    lies_in = places.lies_in
    return {w: lies_in[s.picture] for w, s in verb.slots.items() if s.picture in lies_in}


@dataclass(slots=True)
class _Places:
    """Where the pictures of an entry lie while a `Keep` finds places for its own."""

    lies_in: dict[str, int]
    """Picture → slot, expired ones among them."""
    taken: set[int]
    """Slots that nothing may be put into."""
    displaceable: dict[int, str]
    """Slots whose live picture has to make way: slot → picture."""
    displaced: dict[int, str] = field(default_factory=dict)

    @classmethod
    def read(cls, tx: Transaction, verb: verbs.Keep) -> _Places:
        held = _slots(tx, verb.fingerprint)
        claimed = _claims(tx, verb.fingerprint)
        fresh = {index: slot.picture for index, slot in held.items() if slot.expires_at > tx.now}
        own = {slot.picture for slot in verb.slots.values()}
        displaceable = {
            index: picture
            for index, picture in fresh.items()
            if verb.displaces and index not in claimed and picture not in own
        }
        lies_in = {slot.picture: index for index, slot in held.items()}
        return cls(lies_in, {*fresh, *claimed}, displaceable)

    def place(self, wanted: int, picture: str) -> int | None:
        """The slot that a picture goes to; None if it lies in one, or there is none left."""
        if picture in self.lies_in:
            return None
        if wanted in self.displaceable:
            self.displaced[wanted] = self.displaceable.pop(wanted)
            self.taken.discard(wanted)
        return self._occupy(_free_slot(wanted, self.taken), picture)

    def moves(self) -> dict[int, int]:
        """What was displaced goes to what is free in the end: old slot → new slot."""
        moved = {
            index: self._occupy(_free_slot(index, self.taken), picture)
            for index, picture in self.displaced.items()
        }
        return {index: target for index, target in moved.items() if target is not None}

    def _occupy(self, target: int | None, picture: str) -> int | None:
        if target is not None:
            self.taken.add(target)
            self.lies_in = {p: index for p, index in self.lies_in.items() if index != target}
            self.lies_in[picture] = target
        return target


def _free_slot(wanted: int, taken: set[int]) -> int | None:
    """The wanted slot, else the lowest free one, else None."""
    if wanted not in taken:
        return wanted
    return next((slot for slot in range(MAX_SLOTS) if slot not in taken), None)


def _store_slot(tx: Transaction, verb: verbs.Keep, placed: tuple[int, Slot]) -> None:
    index, slot = placed
    expires_at = tx.now + verb.lifetime_seconds
    tx.change(
        "INSERT OR REPLACE INTO slots (fingerprint, slot, picture, expires_at, data, gone_at)"
        " VALUES (?, ?, ?, ?, ?, ?)",
        *(verb.fingerprint, index, slot.picture, expires_at, slot.data),
        expires_at + verb.linger_seconds,
    )


def _linger(tx: Transaction, verb: verbs.Keep) -> None:
    """No slot of the entry goes before the one that lives longest."""
    tx.change(
        "UPDATE slots SET gone_at = (SELECT max(gone_at) FROM slots WHERE fingerprint = ?)"
        " WHERE fingerprint = ? AND gone_at > ?",
        verb.fingerprint,
        verb.fingerprint,
        tx.now,
    )


def _clear(tx: Transaction, verb: verbs.Clear) -> None:
    tx.db.executemany(
        "DELETE FROM slots WHERE fingerprint = ? AND slot = ? AND picture = ?",
        [(verb.fingerprint, slot, picture) for slot, picture in verb.pictures.items()],
    )


def _scan_entries(tx: Transaction, verb: verbs.ScanEntries) -> verbs.EntriesPage:
    rows = tx.all(
        "SELECT fingerprint, slot, picture, expires_at, data FROM slots WHERE fingerprint IN"
        " (SELECT DISTINCT fingerprint FROM slots WHERE fingerprint > ? AND +gone_at > ?"
        " ORDER BY fingerprint LIMIT ?) AND +gone_at > ? ORDER BY fingerprint, slot",
        *(verb.after, tx.now, verb.limit, tx.now),
    )
    entries: dict[str, dict[int, Slot]] = {}
    for fingerprint, index, *slot in rows:
        entries.setdefault(fingerprint, {})[index] = Slot(*slot)
    return verbs.EntriesPage(entries, max(entries) if len(entries) == verb.limit else None)


def _slots(tx: Transaction, fingerprint: str) -> dict[int, Slot]:
    """Every slot of the entry that holds a picture, expired or not."""
    rows = tx.all(
        "SELECT slot, picture, expires_at, data FROM slots"
        " WHERE fingerprint = ? AND gone_at > ? ORDER BY slot",
        fingerprint,
        tx.now,
    )
    return {index: Slot(picture, expires_at, data) for index, picture, expires_at, data in rows}


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
