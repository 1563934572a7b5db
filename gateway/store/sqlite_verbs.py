"""Each verb as SQL: one function a verb, run inside a transaction that the caller owns.

Here are the tables and what the verbs do to them. Connections, threads, locks and transactions
are `sqlite`'s. A row's `gone_at` is the moment from which every verb treats it as absent, and
`Sweep` may delete it; the expiry of pictures and leases is `expires_at`.
"""

from __future__ import annotations

import json
import math
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal, NamedTuple, cast

from gateway.images import MAX_SLOTS
from gateway.store import meters, verbs
from gateway.store.verbs import (
    CLOSED_JOURNAL_SECONDS,
    MOST_VICTIMS,
    WINDOW_GRACE_SECONDS,
    Meter,
    MeterState,
    Slot,
    Take,
    Verb,
)

_LAYOUT_1: Final = """
CREATE TABLE records (
    space TEXT NOT NULL, name TEXT NOT NULL, value BLOB NOT NULL,
    PRIMARY KEY (space, name)
);
CREATE TABLE slots (
    fingerprint TEXT NOT NULL, slot INTEGER NOT NULL,
    picture TEXT NOT NULL, expires_at REAL NOT NULL, data BLOB NOT NULL, gone_at REAL NOT NULL,
    PRIMARY KEY (fingerprint, slot)
);
CREATE INDEX slots_gone ON slots (gone_at);
CREATE TABLE claims (
    fingerprint TEXT NOT NULL, slot INTEGER NOT NULL, flight TEXT NOT NULL, gone_at REAL NOT NULL,
    PRIMARY KEY (fingerprint, slot)
);
CREATE INDEX claims_gone ON claims (gone_at);
CREATE TABLE events (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    flight TEXT NOT NULL, event_id TEXT NOT NULL, event BLOB NOT NULL, gone_at REAL NOT NULL,
    UNIQUE (flight, event_id)
);
CREATE INDEX events_order ON events (flight, id);
CREATE INDEX events_gone ON events (gone_at);
CREATE TABLE workers (worker TEXT PRIMARY KEY, beat_at REAL NOT NULL);
CREATE TABLE buckets (
    scope TEXT NOT NULL, unit TEXT NOT NULL,
    level INTEGER NOT NULL, at INTEGER NOT NULL, gone_at REAL NOT NULL,
    PRIMARY KEY (scope, unit)
);
CREATE TABLE windows (
    scope TEXT NOT NULL, unit TEXT NOT NULL, period TEXT NOT NULL, label TEXT NOT NULL,
    spent INTEGER NOT NULL, reserved INTEGER NOT NULL, gone_at REAL NOT NULL,
    PRIMARY KEY (scope, unit, period, label)
);
CREATE TABLE journals (
    purchase TEXT PRIMARY KEY, worker TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('reserved', 'received', 'settled')),
    payload BLOB NOT NULL, takes TEXT NOT NULL, charge TEXT NOT NULL, presumed INTEGER NOT NULL,
    gone_at REAL NOT NULL
);
CREATE INDEX journals_open ON journals (worker) WHERE state != 'settled';
CREATE INDEX journals_gone ON journals (gone_at);
CREATE TABLE ledger (
    position INTEGER PRIMARY KEY AUTOINCREMENT, day TEXT NOT NULL, record BLOB NOT NULL
);
CREATE INDEX ledger_days ON ledger (day);
CREATE TABLE appends (batch_id TEXT PRIMARY KEY, gone_at REAL NOT NULL);
CREATE INDEX appends_gone ON appends (gone_at);
"""

_LAYOUT_2: Final = """
CREATE TABLE notes (
    space TEXT NOT NULL, name TEXT NOT NULL, value BLOB NOT NULL, gone_at REAL NOT NULL,
    PRIMARY KEY (space, name)
);
CREATE INDEX notes_gone ON notes (gone_at);
CREATE TABLE lists (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    space TEXT NOT NULL, name TEXT NOT NULL, gone_at REAL NOT NULL
);
CREATE INDEX lists_name ON lists (space, name, gone_at);
CREATE INDEX lists_gone ON lists (gone_at);
CREATE TABLE members (
    list INTEGER NOT NULL, member TEXT NOT NULL,
    PRIMARY KEY (list, member)
);
CREATE TABLE shelf (
    digest TEXT PRIMARY KEY, size_bytes INTEGER NOT NULL,
    used_at INTEGER NOT NULL, gone_at REAL NOT NULL
);
CREATE UNIQUE INDEX shelf_used ON shelf (used_at);
CREATE INDEX shelf_gone ON shelf (gone_at);
CREATE TABLE shelf_total (count INTEGER NOT NULL, size_bytes INTEGER NOT NULL);
INSERT INTO shelf_total VALUES (0, 0);
CREATE TRIGGER shelf_grows AFTER INSERT ON shelf BEGIN
    UPDATE shelf_total SET count = count + 1, size_bytes = size_bytes + new.size_bytes;
END;
CREATE TRIGGER shelf_shrinks AFTER DELETE ON shelf BEGIN
    UPDATE shelf_total SET count = count - 1, size_bytes = size_bytes - old.size_bytes;
END;
"""
# A list that is over keeps its row until it is swept, and one of its name that begins anew has
# another: so no verb has to remove many members at once. Nothing updates `shelf.size_bytes`, so
# two triggers keep the total right, whoever deletes.

LAYOUTS: Final = (_LAYOUT_1, _LAYOUT_2)
"""What makes layout n + 1 out of layout n; 0 is an empty database."""

_OVER: Final = {
    table: f"SELECT rowid FROM {table} WHERE gone_at <= ?"  # noqa: S608 - a name from below
    for table in (
        *("slots", "claims", "events", "buckets", "windows", "journals", "appends"),
        *("notes", "shelf"),
    )
} | {
    "members": "SELECT members.rowid FROM lists JOIN members ON members.list = lists.id"
    " WHERE lists.gone_at <= ?",
    "lists": "SELECT rowid FROM lists WHERE gone_at <= ?"
    " AND NOT EXISTS (SELECT 1 FROM members WHERE members.list = lists.id)",
}
"""Table → which of its rows are over."""


class Transaction(NamedTuple):
    """What a verb works in: an open transaction, and the one moment at which it all happens."""

    db: sqlite3.Connection
    now: float

    @property
    def now_micros(self) -> int:
        """The moment in whole microseconds, as buckets count."""
        return round(self.now * 1e6)

    def one(self, sql: str, *values: object) -> Any:
        """The first row of a query, or None."""
        return self.db.execute(sql, values).fetchone()

    def all(self, sql: str, *values: object) -> list[Any]:
        """All rows of a query."""
        return self.db.execute(sql, values).fetchall()

    def change(self, sql: str, *values: object) -> int:
        """Runs a statement that writes; answers how many rows it touched."""
        return self.db.execute(sql, values).rowcount


def perform(tx: Transaction, verb: Verb[Any]) -> Any:
    """Runs one verb and answers what it promises."""
    return _PERFORMERS[type(verb)](tx, verb)


def is_reading(batch: Sequence[Verb[Any]]) -> bool:
    """Whether no verb of the batch writes."""
    return all(type(verb) in _READING for verb in batch)


# ── records ─────────────────────────────────────────────────────────────────────────────────


def _get(tx: Transaction, verb: verbs.Get) -> bytes | None:
    if verb.through is None:
        return _record(tx, verb.space, verb.name)
    name = _record(tx, verb.through, verb.name)
    return None if name is None else _record(tx, verb.space, name.decode())


def _put(tx: Transaction, verb: verbs.Put) -> int | None:
    for index, change in enumerate(verb.changes):
        if _record(tx, change.space, change.name) != change.expect:
            return index
    for change in verb.changes:
        _write(tx, change)
    return None


def _write(tx: Transaction, change: verbs.Change) -> None:
    if change.value is None:
        tx.change("DELETE FROM records WHERE space = ? AND name = ?", change.space, change.name)
        return
    tx.change(
        "INSERT OR REPLACE INTO records (space, name, value) VALUES (?, ?, ?)",
        change.space,
        change.name,
        change.value,
    )


def _scan(tx: Transaction, verb: verbs.Scan) -> Mapping[str, bytes]:
    return dict(tx.all("SELECT name, value FROM records WHERE space = ?", verb.space))


def _record(tx: Transaction, space: str, name: str) -> bytes | None:
    row = tx.one("SELECT value FROM records WHERE space = ? AND name = ?", space, name)
    return None if row is None else cast(bytes, row[0])


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
        "UPDATE slots SET gone_at = (SELECT max(gone_at) FROM slots WHERE fingerprint = ?1)"
        " WHERE fingerprint = ?1 AND gone_at > ?2",
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
        " (SELECT DISTINCT fingerprint FROM slots WHERE fingerprint > ?1 AND +gone_at > ?2"
        " ORDER BY fingerprint LIMIT ?3) AND +gone_at > ?2 ORDER BY fingerprint, slot",
        *(verb.after, tx.now, verb.limit),
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


# ── workers ─────────────────────────────────────────────────────────────────────────────────


def _beat(tx: Transaction, verb: verbs.Beat | verbs.Reserve) -> None:
    tx.change("INSERT OR REPLACE INTO workers (worker, beat_at) VALUES (?, ?)", verb.worker, tx.now)


def _dead_workers(tx: Transaction, verb: verbs.DeadWorkers) -> Sequence[str]:
    rows = tx.all(
        "SELECT worker FROM workers WHERE beat_at <= ? ORDER BY worker", tx.now - verb.after_seconds
    )
    return [worker for (worker,) in rows]


def _retire(tx: Transaction, verb: verbs.Retire) -> bool:
    if tx.one("SELECT 1 FROM journals WHERE worker = ? AND state != 'settled'", verb.worker):
        return False
    tx.change("DELETE FROM workers WHERE worker = ?", verb.worker)
    return True


# ── meters ──────────────────────────────────────────────────────────────────────────────────


def _read_meters(tx: Transaction, verb: verbs.ReadMeters) -> Sequence[MeterState]:
    return tuple(_show(tx, meter) for meter in verb.meters)


def _admit(tx: Transaction, verb: verbs.Admit) -> verbs.Admission:
    record = _record(tx, verb.space, verb.name) or b""
    if record != verb.expect:
        return verbs.Admission(None, record, ())
    refused = _first_refused(tx, verb.takes)
    if refused is None:
        _draw(tx, verb.takes)
    return verbs.Admission(refused, None, _show_takes(tx, verb.takes, refused=refused))


def _first_refused(tx: Transaction, takes: Sequence[Take]) -> int | None:
    return next((index for index, take in enumerate(takes) if not _fits(tx, take)), None)


def _fits(tx: Transaction, take: Take) -> bool:
    meter = take.meter
    if meter.maximum is None or take.amount == 0:
        return True
    if meter.period == "minute":
        return take.amount * meters.UNITS <= _bucket(tx, meter, meter.maximum).level
    spent, reserved = _window(tx, meter)
    return spent + reserved + take.amount <= meter.maximum


def _draw(tx: Transaction, takes: Sequence[Take]) -> None:
    """Takes from the buckets; windows are not drawn from but reserved in."""
    for take in takes:
        meter = take.meter
        if meter.period != "minute" or meter.maximum is None or take.amount == 0:
            continue
        bucket = _bucket(tx, meter, meter.maximum)
        tx.change(
            "INSERT OR REPLACE INTO buckets (scope, unit, level, at, gone_at)"
            " VALUES (?, ?, ?, ?, ?)",
            *(meter.scope, meter.unit, bucket.level - take.amount * meters.UNITS, bucket.at),
            bucket.at / 1e6 + meters.BUCKET_SECONDS,
        )


def _show_takes(
    tx: Transaction, takes: Sequence[Take], *, refused: int | None = None
) -> tuple[MeterState, ...]:
    return tuple(
        _show(tx, take.meter, refused=take.amount if index == refused else 0)
        for index, take in enumerate(takes)
    )


def _show(tx: Transaction, meter: Meter, *, refused: int = 0) -> MeterState:
    """What a meter shows now; `refused` is the amount that its bucket just could not give."""
    if meter.period != "minute":
        spent, reserved = _window(tx, meter)
        ends_at = meters.window_at(meter.period, tx.now).ends_at
        return meters.show_window(spent, reserved, resets_in=ends_at - tx.now)
    if meter.maximum is None:
        return MeterState(used=0, reserved=0, resets_in=0.0)
    bucket = _bucket(tx, meter, meter.maximum)
    return meters.show_bucket(bucket, meter.maximum, refused=refused)


def _bucket(tx: Transaction, meter: Meter, maximum: int) -> meters.Bucket:
    row = tx.one("SELECT level, at FROM buckets WHERE scope = ? AND unit = ?", *_name(meter))
    bucket = None if row is None else meters.Bucket(*row)
    return meters.refill(bucket, maximum, now=tx.now_micros)


def _window(tx: Transaction, meter: Meter) -> tuple[int, int]:
    """What is spent and reserved in the meter's window of now."""
    row = tx.one(
        "SELECT spent, reserved FROM windows"
        " WHERE scope = ? AND unit = ? AND period = ? AND label = ?",
        *(*_name(meter), meter.period, meters.window_at(meter.period, tx.now).label),
    )
    return (0, 0) if row is None else (row[0], row[1])


def _name(meter: Meter) -> tuple[str, str]:
    return meter.scope, meter.unit


# ── journals ────────────────────────────────────────────────────────────────────────────────


class _Part(NamedTuple):
    """One take of a reservation as its journal remembers it: with the window it fell into."""

    scope: str
    unit: str
    period: Literal["minute", "day", "month", "open"]
    maximum: int | None
    amount: int
    label: str

    @property
    def meter(self) -> Meter:
        return Meter(self.scope, self.unit, self.period, self.maximum)


@dataclass(frozen=True, slots=True)
class _Closing:
    """What the journal of a purchase says about closing it."""

    is_closed: bool
    parts: tuple[_Part, ...]
    charge: Mapping[str, int]
    presumed: bool

    @property
    def windows(self) -> Iterator[_Part]:
        return (part for part in self.parts if part.period != "minute")


def _reserve(tx: Transaction, verb: verbs.Reserve) -> verbs.Reservation:
    if _closing(tx, verb.purchase) is not None:
        return verbs.Reservation(None, _show_takes(tx, verb.takes), tx.now)
    refused = _first_refused(tx, verb.takes)
    if refused is None:
        _draw(tx, verb.takes)
        _open_journal(tx, verb)
        _beat(tx, verb)
    return verbs.Reservation(refused, _show_takes(tx, verb.takes, refused=refused), tx.now)


def _open_journal(tx: Transaction, verb: verbs.Reserve) -> None:
    parts = [_reserved_part(tx, take) for take in verb.takes]
    _write_journal(
        tx,
        verb.purchase,
        state="reserved",
        gone_at=math.inf,
        worker=verb.worker,
        payload=verb.payload,
        takes=json.dumps(parts),
    )


def _write_journal(
    tx: Transaction,
    purchase: str,
    *,
    state: str,
    gone_at: float,
    worker: str = "",
    payload: bytes = b"",
    takes: str = "[]",
) -> None:
    tx.change(
        "INSERT OR REPLACE INTO journals"
        " (purchase, worker, state, payload, takes, charge, presumed, gone_at)"
        " VALUES (?, ?, ?, ?, ?, '{}', 0, ?)",
        *(purchase, worker, state, payload, takes, gone_at),
    )


def _reserved_part(tx: Transaction, take: Take) -> _Part:
    """Reserves the take in its window, which is made when it is the first."""
    meter = take.meter
    window = meters.window_at(meter.period, tx.now)
    part = _Part(*_name(meter), meter.period, meter.maximum, take.amount, window.label)
    if meter.period != "minute":
        tx.change(
            "INSERT INTO windows (scope, unit, period, label, spent, reserved, gone_at)"
            " VALUES (?, ?, ?, ?, 0, ?, ?) ON CONFLICT DO UPDATE"
            " SET reserved = reserved + excluded.reserved",
            *(*_name(meter), meter.period, window.label, take.amount),
            window.ends_at + WINDOW_GRACE_SECONDS,
        )
    return part


def _receive(tx: Transaction, verb: verbs.Receive) -> Literal["received", "settled", "unknown"]:
    journal = _closing(tx, verb.purchase)
    if journal is None:
        return "unknown"
    if journal.is_closed:
        return "settled"
    tx.change(
        "UPDATE journals SET state = 'received', payload = ? WHERE purchase = ?",
        verb.payload,
        verb.purchase,
    )
    return "received"


def _settle(tx: Transaction, verb: verbs.Settle) -> verbs.Settlement:
    journal = _closing(tx, verb.purchase)
    if journal is None:
        _write_journal(tx, verb.purchase, state="settled", gone_at=tx.now + CLOSED_JOURNAL_SECONDS)
        return verbs.Settlement("unknown", {}, presumed=False, states=())
    if not journal.is_closed:
        _give_back(tx, journal)
        return _charge(tx, verb, journal=journal)
    if verb.correct and journal.presumed:
        return _charge(tx, verb, journal=journal)
    return _settlement(tx, journal, status="already")


def _give_back(tx: Transaction, journal: _Closing) -> None:
    for part in journal.windows:
        _move_window(tx, part, spent=0, reserved=-part.amount)


def _charge(tx: Transaction, verb: verbs.Settle, *, journal: _Closing) -> verbs.Settlement:
    """Moves the windows from what the journal is charged with now to what the verb says."""
    for part in journal.windows:
        difference = verb.charge.get(part.unit, 0) - journal.charge.get(part.unit, 0)
        if part.period != "open":
            _move_window(tx, part, spent=difference, reserved=0)
    if verb.record is not None:
        _append_record(tx, verb.record)
    presumed = verb.presumed and not journal.is_closed
    tx.change(
        "UPDATE journals SET state = 'settled', payload = x'', charge = ?, presumed = ?,"
        " gone_at = ? WHERE purchase = ?",
        *(json.dumps(dict(verb.charge)), presumed, tx.now + CLOSED_JOURNAL_SECONDS),
        verb.purchase,
    )
    closed = replace(journal, charge=verb.charge, presumed=presumed)
    return _settlement(tx, closed, status="corrected" if journal.is_closed else "settled")


def _move_window(tx: Transaction, part: _Part, *, spent: int, reserved: int) -> None:
    """Moves the counters of the window that the take fell into, unless it is swept already."""
    tx.change(
        "UPDATE windows SET spent = spent + ?, reserved = reserved + ?"
        " WHERE scope = ? AND unit = ? AND period = ? AND label = ?",
        *(spent, reserved, part.scope, part.unit, part.period, part.label),
    )


def _settlement(
    tx: Transaction, journal: _Closing, *, status: Literal["settled", "already", "corrected"]
) -> verbs.Settlement:
    states = tuple(_show(tx, part.meter) for part in journal.parts)
    return verbs.Settlement(status, dict(journal.charge), journal.presumed, states)


def _closing(tx: Transaction, purchase: str) -> _Closing | None:
    row = tx.one(
        "SELECT state, takes, charge, presumed FROM journals WHERE purchase = ? AND gone_at > ?",
        purchase,
        tx.now,
    )
    if row is None:
        return None
    state, takes, charge, presumed = row
    parts = tuple(_Part(*part) for part in json.loads(takes))
    return _Closing(state == "settled", parts, json.loads(charge), bool(presumed))


def _open_journals(tx: Transaction, verb: verbs.OpenJournals) -> Sequence[verbs.Journal]:
    rows = tx.all(
        "SELECT purchase, worker, state, payload FROM journals"
        " WHERE state != 'settled' AND worker = coalesce(?, worker) ORDER BY rowid",
        verb.worker,
    )
    return [verbs.Journal(*row) for row in rows]


# ── ledger ──────────────────────────────────────────────────────────────────────────────────


def _append(tx: Transaction, verb: verbs.Append) -> None:
    is_new = tx.change(
        "INSERT OR IGNORE INTO appends (batch_id, gone_at) VALUES (?, ?)",
        verb.batch_id,
        tx.now + verbs.APPENDED_SECONDS,
    )
    for record in verb.records if is_new else ():
        _append_record(tx, record)


def _append_record(tx: Transaction, record: bytes) -> None:
    """Under the day of now, or the last one if the clock went back: ids only grow."""
    today = meters.window_at("day", tx.now).label
    tx.change(
        "INSERT INTO ledger (day, record) VALUES"
        " (max(?, coalesce((SELECT day FROM ledger ORDER BY position DESC LIMIT 1), '')), ?)",
        today,
        record,
    )


def _read_ledger(tx: Transaction, verb: verbs.ReadLedger) -> Sequence[tuple[str, bytes]]:
    day, _, position = verb.after.partition("/")
    rows = tx.all(
        "SELECT day, position, record FROM ledger WHERE (day, position) > (?, ?)"
        " ORDER BY day, position LIMIT ?",
        *(day, int(position or 0), verb.limit),
    )
    return [(f"{day}/{position:016d}", record) for day, position, record in rows]


# ── sweeping ────────────────────────────────────────────────────────────────────────────────


def _sweep(tx: Transaction, verb: verbs.Sweep) -> int:
    swept = 0
    for table, over in _OVER.items():
        swept += tx.change(
            f"DELETE FROM {table} WHERE rowid IN ({over} LIMIT ?)",  # noqa: S608 - from above
            tx.now,
            verb.limit - swept,
        )
    return swept


def _inspect(tx: Transaction, _verb: verbs.Inspect) -> verbs.StoreFacts:
    return verbs.StoreFacts(
        "sqlite", tx.now, eviction_policy=None, maxmemory_bytes=None, is_durable=True
    )


_PERFORMERS: Final[Mapping[type[Verb[Any]], Callable[[Transaction, Any], Any]]] = {
    verbs.Get: _get,
    verbs.Put: _put,
    verbs.Scan: _scan,
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
    verbs.Beat: _beat,
    verbs.DeadWorkers: _dead_workers,
    verbs.Retire: _retire,
    verbs.ReadMeters: _read_meters,
    verbs.Admit: _admit,
    verbs.Reserve: _reserve,
    verbs.Receive: _receive,
    verbs.Settle: _settle,
    verbs.OpenJournals: _open_journals,
    verbs.Append: _append,
    verbs.ReadLedger: _read_ledger,
    verbs.Sweep: _sweep,
    verbs.Inspect: _inspect,
}

_READING: Final = frozenset(
    {
        verbs.Get,
        verbs.Scan,
        verbs.ReadEntry,
        verbs.ScanEntries,
        verbs.ReadNote,
        verbs.ReadList,
        verbs.Oldest,
        verbs.ReadShelf,
        verbs.OnShelf,
        verbs.ReadEvents,
        verbs.DeadWorkers,
        verbs.ReadMeters,
        verbs.OpenJournals,
        verbs.ReadLedger,
        verbs.Inspect,
    }
)
