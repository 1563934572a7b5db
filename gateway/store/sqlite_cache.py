"""What the cache keeps, as SQL: entries and claims, notes and lists, the shelf, flights."""

from __future__ import annotations

import json
import math
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, cast

from gateway.images import MAX_SLOTS
from gateway.store import verbs
from gateway.store.sqlite_tables import Performers, Transaction
from gateway.store.verbs import MOST_VICTIMS, Slot

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


# ── notes and lists ─────────────────────────────────────────────────────────────────────────


def _note(tx: Transaction, verb: verbs.Note) -> bool:
    if verb.is_new and _read_note(tx, verb) is not None:
        return False
    lifetime = math.inf if verb.lifetime_seconds is None else verb.lifetime_seconds
    tx.change(
        "INSERT OR REPLACE INTO notes (space, name, value, gone_at) VALUES (?, ?, ?, ?)",
        *(verb.space, verb.name, verb.value, tx.now + lifetime),
    )
    return True


def _read_note(tx: Transaction, verb: verbs.ReadNote | verbs.Note) -> bytes | None:
    row = tx.one(
        "SELECT value FROM notes WHERE space = ? AND name = ? AND gone_at > ?",
        *(verb.space, verb.name, tx.now),
    )
    return None if row is None else cast(bytes, row[0])


def _drop_note(tx: Transaction, verb: verbs.DropNote) -> None:
    tx.change("DELETE FROM notes WHERE space = ? AND name = ?", verb.space, verb.name)


def _enlist(tx: Transaction, verb: verbs.Enlist) -> None:
    gone_at = tx.now + verb.lifetime_seconds
    number = _list_number(tx, verb)
    if number is None:
        tx.change(
            "INSERT INTO lists (space, name, gone_at) VALUES (?, ?, ?)",
            *(verb.space, verb.name, gone_at),
        )
        number = _list_number(tx, verb)
    tx.change("UPDATE lists SET gone_at = max(gone_at, ?) WHERE id = ?", gone_at, number)
    tx.db.executemany(
        "INSERT OR IGNORE INTO members (list, member) VALUES (?, ?)",
        [(number, member) for member in verb.members],
    )


def _read_list(tx: Transaction, verb: verbs.ReadList) -> Sequence[str]:
    rows = tx.all("SELECT member FROM members WHERE list = ?", _list_number(tx, verb))
    return [member for (member,) in rows]


def _strike(tx: Transaction, verb: verbs.Strike) -> None:
    number = _list_number(tx, verb)
    tx.db.executemany(
        "DELETE FROM members WHERE list = ? AND member = ?",
        [(number, member) for member in verb.members],
    )


def _list_number(tx: Transaction, verb: verbs.Enlist | verbs.ReadList | verbs.Strike) -> int | None:
    row = tx.one(
        "SELECT id FROM lists WHERE space = ? AND name = ? AND gone_at > ?",
        *(verb.space, verb.name, tx.now),
    )
    return None if row is None else int(row[0])


# ── the shelf ───────────────────────────────────────────────────────────────────────────────


def _shelve(tx: Transaction, verb: verbs.Shelve) -> Sequence[str]:
    gone_at = tx.now + verb.lifetime_seconds
    before = tx.one("SELECT gone_at FROM shelf WHERE digest = ?", verb.digest)
    tx.change("DELETE FROM shelf WHERE digest = ?", verb.digest)
    victims = _make_room(tx, verb.most_bytes - verb.size_bytes)
    tx.change(
        "INSERT INTO shelf (digest, size_bytes, used_at, gone_at) VALUES (?, ?, ?, ?)",
        *(verb.digest, verb.size_bytes, _next_use(tx)),
        gone_at if before is None else max(gone_at, before[0]),
    )
    return victims


def _shrink(tx: Transaction, verb: verbs.Shrink) -> Sequence[str]:
    return _make_room(tx, verb.most_bytes)


def _make_room(tx: Transaction, most_bytes: int) -> list[str]:
    """Forgets what is over, then as many of the least recently used as it takes."""
    _forget_ended(tx)
    while (over := _shelf_total(tx).size_bytes - most_bytes) > 0 and _forget_ended(tx):
        pass
    victims = _least_used(tx, over)
    _take_off(tx, victims)
    return victims


def _forget_ended(tx: Transaction) -> int:
    """Takes a hundred off that are past their time; answers how many there were."""
    return tx.change(
        "DELETE FROM shelf WHERE rowid IN (SELECT rowid FROM shelf WHERE gone_at <= ? LIMIT 100)",
        tx.now,
    )


def _least_used(tx: Transaction, size_bytes: int) -> list[str]:
    """Those that together have so many bytes, oldest first."""
    rows = tx.db.execute(
        "SELECT digest, size_bytes FROM shelf WHERE +gone_at > ? ORDER BY used_at LIMIT ?",
        (tx.now, MOST_VICTIMS),
    )
    found: list[str] = []
    while size_bytes > 0 and (row := rows.fetchone()):
        found.append(row[0])
        size_bytes -= row[1]
    return found


def _take_off(tx: Transaction, digests: Sequence[str]) -> None:
    tx.db.executemany("DELETE FROM shelf WHERE digest = ?", [(digest,) for digest in digests])


def _touch(tx: Transaction, verb: verbs.Touch) -> None:
    moment = _next_use(tx)
    tx.db.executemany(
        "UPDATE shelf SET used_at = ? WHERE digest = ?",
        [(moment + offset, digest) for offset, digest in enumerate(verb.digests)],
    )


def _next_use(tx: Transaction) -> int:
    """Now in microseconds, but later than any use before: no two are ever the same moment."""
    (latest,) = tx.one("SELECT coalesce(max(used_at), 0) FROM shelf")
    return max(tx.now_micros, int(latest) + 1)


def _unshelve(tx: Transaction, verb: verbs.Unshelve) -> None:
    _take_off(tx, verb.digests)


def _oldest(tx: Transaction, verb: verbs.Oldest) -> Sequence[str]:
    return _least_used(tx, verb.size_bytes)


def _read_shelf(tx: Transaction, verb: verbs.ReadShelf) -> verbs.Shelf:
    total = _shelf_total(tx)
    ended, ended_bytes = tx.one(
        "SELECT count(*), coalesce(sum(size_bytes), 0) FROM shelf WHERE gone_at <= ?", tx.now
    )
    return verbs.Shelf(total.count - ended, total.size_bytes - ended_bytes)


def _shelf_total(tx: Transaction) -> verbs.Shelf:
    """All that lies there, also what is past its time."""
    return verbs.Shelf(*tx.one("SELECT count, size_bytes FROM shelf_total"))


def _on_shelf(tx: Transaction, verb: verbs.OnShelf) -> Sequence[bool]:
    there = "SELECT 1 FROM shelf WHERE digest = ? AND gone_at > ?"
    return [tx.one(there, digest, tx.now) is not None for digest in verb.digests]


# ── flights ─────────────────────────────────────────────────────────────────────────────────


def _publish(tx: Transaction, verb: verbs.Publish) -> None:
    gone_at = tx.now + verb.lifetime_seconds
    tx.change("DELETE FROM events WHERE flight = ? AND gone_at <= ?", verb.flight, tx.now)
    added = tx.change(
        "INSERT OR IGNORE INTO events (flight, event_id, event, gone_at) VALUES (?, ?, ?, ?)",
        verb.flight,
        verb.event_id,
        verb.event,
        gone_at,
    )
    if added:
        tx.change("UPDATE events SET gone_at = ? WHERE flight = ?", gone_at, verb.flight)


def _read_events(tx: Transaction, verb: verbs.ReadEvents) -> Sequence[bytes]:
    rows = tx.all(
        "SELECT event FROM events WHERE flight = ? AND gone_at > ? ORDER BY id LIMIT -1 OFFSET ?",
        verb.flight,
        tx.now,
        verb.after,
    )
    return [event for (event,) in rows]


def newest_events(db: sqlite3.Connection, flights: Sequence[str]) -> Mapping[str, int]:
    """The highest event id of each flight that has events. Ids grow and are never used again."""
    rows = db.execute(
        "SELECT flight, max(id) FROM events"
        " WHERE flight IN (SELECT value FROM json_each(?)) GROUP BY flight",
        (json.dumps(flights),),
    )
    return dict(rows.fetchall())


CACHE: Final[Performers] = {
    verbs.ReadEntry: _read_entry,
    verbs.Claim: _claim,
    verbs.Extend: _extend,
    verbs.Release: _release,
    verbs.Keep: _keep,
    verbs.Clear: _clear,
    verbs.ScanEntries: _scan_entries,
    verbs.Note: _note,
    verbs.ReadNote: _read_note,
    verbs.DropNote: _drop_note,
    verbs.Enlist: _enlist,
    verbs.ReadList: _read_list,
    verbs.Strike: _strike,
    verbs.Shelve: _shelve,
    verbs.Shrink: _shrink,
    verbs.Touch: _touch,
    verbs.Unshelve: _unshelve,
    verbs.Oldest: _oldest,
    verbs.ReadShelf: _read_shelf,
    verbs.OnShelf: _on_shelf,
    verbs.Publish: _publish,
    verbs.ReadEvents: _read_events,
}
