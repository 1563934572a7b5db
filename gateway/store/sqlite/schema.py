"""The tables of the embedded store, and what a verb works in.

A row's `gone_at` is the moment from which every verb treats it as absent, and `Sweep` may delete
it; the expiry of images and leases is `expires_at`. What the verbs do is in `sqlite_cache`,
`sqlite_books` and `sqlite_verbs`.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple, cast

from gateway.store.protocol import Command

_LAYOUT_1: Final = """
CREATE TABLE records (
    space TEXT NOT NULL, name TEXT NOT NULL, value BLOB NOT NULL,
    PRIMARY KEY (space, name)
);
CREATE TABLE slots (
    fingerprint TEXT NOT NULL, slot INTEGER NOT NULL,
    image TEXT NOT NULL, expires_at REAL NOT NULL, data BLOB NOT NULL, gone_at REAL NOT NULL,
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

OVER: Final = {
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

    def record(self, space: str, name: str) -> bytes | None:
        """A record's value; None if there is none."""
        row = self.one("SELECT value FROM records WHERE space = ? AND name = ?", space, name)
        return None if row is None else cast(bytes, row[0])


Performers = Mapping[type[Command[Any]], Callable[[Transaction, Any], Any]]
"""Verb → the function that performs it in a transaction and answers what the verb promises."""
