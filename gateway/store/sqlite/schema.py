"""The tables of the embedded store.

`remove_after` is the moment from which every command treats a row as absent; from then on `Sweep`
may delete it. `slots.expires_at` is different: an expired image is stale but still there.
Times of leases, events, buckets, workers and expiring values are on the steady clock
(`steady_clock`), all others on the machine's. They are Unix seconds, except for
`buckets.updated_at` and `lru.used_at`, which count microseconds.
"""

from __future__ import annotations

from typing import Final

SCHEMA: Final = """
CREATE TABLE records (
    space TEXT NOT NULL, name TEXT NOT NULL, value BLOB NOT NULL,
    PRIMARY KEY (space, name)
);

CREATE TABLE expiring_values (
    space TEXT NOT NULL, name TEXT NOT NULL, value BLOB NOT NULL, remove_after REAL NOT NULL,
    PRIMARY KEY (space, name)
);
CREATE INDEX expiring_values_by_removal ON expiring_values (remove_after);

-- An expired set keeps its row and its members until a sweep deletes them. A new set of the same
-- name has another id, so no command ever has to delete many members at once.
CREATE TABLE sets (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    space TEXT NOT NULL, name TEXT NOT NULL, remove_after REAL NOT NULL
);
CREATE INDEX sets_by_name ON sets (space, name, remove_after);
CREATE INDEX sets_by_removal ON sets (remove_after);
CREATE TABLE set_members (
    set_id INTEGER NOT NULL, member TEXT NOT NULL,
    PRIMARY KEY (set_id, member)
);

CREATE TABLE slots (
    fingerprint TEXT NOT NULL, slot INTEGER NOT NULL,
    image_id TEXT NOT NULL, expires_at REAL NOT NULL, data BLOB NOT NULL,
    remove_after REAL NOT NULL,
    PRIMARY KEY (fingerprint, slot)
);
CREATE INDEX slots_by_removal ON slots (remove_after);
CREATE TABLE leases (
    fingerprint TEXT NOT NULL, slot INTEGER NOT NULL,
    flight TEXT NOT NULL, granted_at REAL NOT NULL, remove_after REAL NOT NULL,
    PRIMARY KEY (fingerprint, slot)
);
CREATE INDEX leases_by_removal ON leases (remove_after);

CREATE TABLE events (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    flight TEXT NOT NULL, event_id TEXT NOT NULL, event BLOB NOT NULL, remove_after REAL NOT NULL,
    UNIQUE (flight, event_id)
);
CREATE INDEX events_in_order ON events (flight, id);
CREATE INDEX events_by_removal ON events (remove_after);

CREATE TABLE lru (
    digest TEXT PRIMARY KEY, size_bytes INTEGER NOT NULL,
    used_at INTEGER NOT NULL, remove_after REAL NOT NULL
);
CREATE UNIQUE INDEX lru_by_use ON lru (used_at);
CREATE INDEX lru_by_removal ON lru (remove_after);
-- Triggers keep the totals right whichever statement deletes. No statement updates size_bytes.
CREATE TABLE lru_totals (count INTEGER NOT NULL, size_bytes INTEGER NOT NULL);
INSERT INTO lru_totals VALUES (0, 0);
CREATE TRIGGER lru_row_added AFTER INSERT ON lru BEGIN
    UPDATE lru_totals SET count = count + 1, size_bytes = size_bytes + new.size_bytes;
END;
CREATE TRIGGER lru_row_deleted AFTER DELETE ON lru BEGIN
    UPDATE lru_totals SET count = count - 1, size_bytes = size_bytes - old.size_bytes;
END;

-- `latest` is the last heartbeat: the clock never goes back behind it.
CREATE TABLE steady_clock (boot TEXT NOT NULL, offset_seconds REAL NOT NULL, latest REAL NOT NULL);
CREATE TABLE workers (worker TEXT PRIMARY KEY, heartbeat_at REAL NOT NULL);

CREATE TABLE buckets (
    subject TEXT NOT NULL, unit TEXT NOT NULL,
    level INTEGER NOT NULL, updated_at INTEGER NOT NULL, remove_after REAL NOT NULL,
    PRIMARY KEY (subject, unit)
);
CREATE TABLE windows (
    subject TEXT NOT NULL, unit TEXT NOT NULL, period TEXT NOT NULL, label TEXT NOT NULL,
    spent INTEGER NOT NULL, reserved INTEGER NOT NULL, remove_after REAL NOT NULL,
    PRIMARY KEY (subject, unit, period, label)
);

CREATE TABLE journals (
    purchase TEXT PRIMARY KEY, worker TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('reserved', 'received', 'settled')),
    payload BLOB NOT NULL, consumptions TEXT NOT NULL,
    charge TEXT NOT NULL, presumed INTEGER NOT NULL,
    remove_after REAL NOT NULL
);
CREATE INDEX journals_open ON journals (worker) WHERE state != 'settled';
CREATE INDEX journals_by_removal ON journals (remove_after);

CREATE TABLE ledger (
    position INTEGER PRIMARY KEY AUTOINCREMENT, day TEXT NOT NULL, record BLOB NOT NULL
);
CREATE INDEX ledger_by_day ON ledger (day);
CREATE TABLE appends (batch_id TEXT PRIMARY KEY, remove_after REAL NOT NULL);
CREATE INDEX appends_by_removal ON appends (remove_after);
"""
