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

-- The members of bounded sets. `name` has the space too.
CREATE TABLE bounded_members (
    name TEXT NOT NULL, member TEXT NOT NULL, remove_after REAL NOT NULL,
    PRIMARY KEY (name, member)
);
-- Counts members that have not expired without reading the others.
CREATE INDEX bounded_members_in_order ON bounded_members (name, remove_after);
CREATE INDEX bounded_members_by_removal ON bounded_members (remove_after);

-- As `sets`, in the order of the members. A trigger keeps `count` right whichever statement changes
-- the members.
CREATE TABLE ordered_sets (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    space TEXT NOT NULL, name TEXT NOT NULL, remove_after REAL NOT NULL,
    count INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX ordered_sets_by_name ON ordered_sets (space, name, remove_after);
CREATE INDEX ordered_sets_by_removal ON ordered_sets (remove_after);
CREATE TABLE ordered_members (
    set_id INTEGER NOT NULL, member TEXT NOT NULL,
    PRIMARY KEY (set_id, member)
);
CREATE TRIGGER ordered_member_added AFTER INSERT ON ordered_members BEGIN
    UPDATE ordered_sets SET count = count + 1 WHERE id = new.set_id;
END;
CREATE TRIGGER ordered_member_deleted AFTER DELETE ON ordered_members BEGIN
    UPDATE ordered_sets SET count = count - 1 WHERE id = old.set_id;
END;

CREATE TABLE hits (
    image_id TEXT PRIMARY KEY, count INTEGER NOT NULL, last_at REAL NOT NULL,
    remove_after REAL NOT NULL
);
CREATE INDEX hits_by_removal ON hits (remove_after);

CREATE TABLE slots (
    fingerprint TEXT NOT NULL, slot INTEGER NOT NULL,
    image_id TEXT NOT NULL, expires_at REAL NOT NULL, data BLOB NOT NULL,
    stored_at REAL NOT NULL, remove_after REAL NOT NULL,
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

-- `kind` names the index: of images, or of partial images.
CREATE TABLE lru (
    kind TEXT NOT NULL, digest TEXT NOT NULL, size_bytes INTEGER NOT NULL,
    used_at INTEGER NOT NULL, remove_after REAL NOT NULL,
    PRIMARY KEY (kind, digest)
);
CREATE UNIQUE INDEX lru_by_use ON lru (kind, used_at);
CREATE INDEX lru_by_removal ON lru (remove_after);
-- Triggers keep the totals right whichever statement deletes. No statement updates size_bytes.
CREATE TABLE lru_totals (
    kind TEXT PRIMARY KEY, count INTEGER NOT NULL, size_bytes INTEGER NOT NULL
);
INSERT INTO lru_totals VALUES ('images', 0, 0), ('partials', 0, 0);
CREATE TRIGGER lru_row_added AFTER INSERT ON lru BEGIN
    UPDATE lru_totals SET count = count + 1, size_bytes = size_bytes + new.size_bytes
        WHERE kind = new.kind;
END;
CREATE TRIGGER lru_row_deleted AFTER DELETE ON lru BEGIN
    UPDATE lru_totals SET count = count - 1, size_bytes = size_bytes - old.size_bytes
        WHERE kind = old.kind;
END;

-- `latest` is the time of the last heartbeat: after a reboot the clock starts no earlier.
CREATE TABLE steady_clock (boot TEXT NOT NULL, offset_seconds REAL NOT NULL, latest REAL NOT NULL);
CREATE TABLE workers (worker TEXT PRIMARY KEY, heartbeat_at REAL NOT NULL);
CREATE INDEX workers_by_heartbeat ON workers (heartbeat_at);

CREATE TABLE buckets (
    subject TEXT NOT NULL, unit TEXT NOT NULL,
    level INTEGER NOT NULL, updated_at INTEGER NOT NULL, remove_after REAL NOT NULL,
    PRIMARY KEY (subject, unit)
);
CREATE INDEX buckets_by_removal ON buckets (remove_after);
CREATE TABLE windows (
    subject TEXT NOT NULL, unit TEXT NOT NULL, period TEXT NOT NULL, label TEXT NOT NULL,
    spent INTEGER NOT NULL, reserved INTEGER NOT NULL, remove_after REAL NOT NULL,
    PRIMARY KEY (subject, unit, period, label)
);
CREATE INDEX windows_by_removal ON windows (remove_after);

CREATE TABLE journals (
    purchase TEXT PRIMARY KEY, worker TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('reserved', 'received', 'settled')),
    payload BLOB NOT NULL, consumptions TEXT NOT NULL,
    charge TEXT NOT NULL, presumed INTEGER NOT NULL,
    remove_after REAL NOT NULL,
    windows TEXT NOT NULL DEFAULT '{}', reserved_at REAL, attempt TEXT NOT NULL DEFAULT '',
    corrected_from TEXT, unreserved INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX journals_open ON journals (worker) WHERE state != 'settled';
CREATE INDEX journals_by_removal ON journals (remove_after);

-- A position is a time in microseconds that grows even if the clock is set back. A record's day is
-- that of its position, and both tables are read as one ledger.
CREATE TABLE ledger_charged (position INTEGER PRIMARY KEY, record BLOB NOT NULL);
CREATE TABLE ledger_free (position INTEGER PRIMARY KEY, record BLOB NOT NULL);
CREATE TABLE ledger_end (position INTEGER NOT NULL, free_bytes INTEGER NOT NULL);
INSERT INTO ledger_end VALUES (0, 0);
CREATE TABLE writers (writer TEXT PRIMARY KEY, number INTEGER NOT NULL, remove_after REAL NOT NULL);
CREATE INDEX writers_by_removal ON writers (remove_after);
CREATE TABLE refusals (
    id INTEGER PRIMARY KEY AUTOINCREMENT, minute INTEGER NOT NULL,
    key TEXT NOT NULL, reason TEXT NOT NULL, count INTEGER NOT NULL, record BLOB NOT NULL,
    UNIQUE (minute, key, reason)
);
CREATE TABLE running_totals (
    name TEXT PRIMARY KEY,
    charged INTEGER NOT NULL, corrected INTEGER NOT NULL, saved INTEGER NOT NULL
);

-- `store.commands.totals` has the terms. A row's dimensions are stored once for all its slots.
CREATE TABLE totals_checkpoint (position TEXT NOT NULL);
INSERT INTO totals_checkpoint VALUES ('');
CREATE TABLE totals_periods (
    id INTEGER PRIMARY KEY, kind TEXT NOT NULL, name TEXT NOT NULL UNIQUE, ends_at REAL NOT NULL
);
CREATE INDEX totals_periods_by_end ON totals_periods (kind, ends_at);
-- Ids are never used again: a page of rows continues after the last id.
CREATE TABLE totals_rows (
    id INTEGER PRIMARY KEY AUTOINCREMENT, period_id INTEGER NOT NULL, dimensions TEXT NOT NULL,
    UNIQUE (period_id, dimensions)
);
CREATE INDEX totals_rows_by_period ON totals_rows (period_id);
CREATE TABLE totals (
    row_id INTEGER NOT NULL, slot INTEGER NOT NULL, sums TEXT NOT NULL,
    PRIMARY KEY (row_id, slot)
) WITHOUT ROWID;
CREATE TABLE totals_groups (
    period_id INTEGER NOT NULL, group_name TEXT NOT NULL, row_count INTEGER NOT NULL,
    PRIMARY KEY (period_id, group_name)
);
"""

ADDED_TABLES: Final = """
CREATE TABLE IF NOT EXISTS account_buckets (
    account TEXT PRIMARY KEY, level INTEGER, updated_at INTEGER NOT NULL,
    latest INTEGER NOT NULL, joined INTEGER NOT NULL, stopped_until INTEGER NOT NULL,
    head TEXT NOT NULL, head_since INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS account_keys (
    account TEXT NOT NULL, key TEXT NOT NULL, tag INTEGER NOT NULL, rank INTEGER NOT NULL,
    PRIMARY KEY (account, key)
);
CREATE TABLE IF NOT EXISTS account_queue (
    purchase TEXT PRIMARY KEY, account TEXT NOT NULL, key TEXT NOT NULL, worker TEXT NOT NULL,
    images INTEGER NOT NULL, size INTEGER NOT NULL, score INTEGER NOT NULL
);
CREATE INDEX IF NOT EXISTS account_queue_in_order ON account_queue (account, key, score);
CREATE TABLE IF NOT EXISTS account_slow_workers (
    account TEXT NOT NULL, worker TEXT NOT NULL, PRIMARY KEY (account, worker)
);
CREATE TABLE IF NOT EXISTS account_grants (
    purchase TEXT PRIMARY KEY, account TEXT NOT NULL, worker TEXT NOT NULL
);

-- The names that were written last, for what workers keep in memory (`kept_reads`). Triggers write
-- them, so that an older gateway's changes are there too. Ids grow, because the last row is never
-- deleted.
CREATE TABLE IF NOT EXISTS changes (id INTEGER PRIMARY KEY, name TEXT NOT NULL);
CREATE TRIGGER IF NOT EXISTS changes_bounded AFTER INSERT ON changes
WHEN NEW.id % 1000 = 0 BEGIN DELETE FROM changes WHERE id <= NEW.id - 10000; END;
CREATE TRIGGER IF NOT EXISTS record_inserted AFTER INSERT ON records
BEGIN INSERT INTO changes (name) VALUES ('records:' || NEW.space); END;
CREATE TRIGGER IF NOT EXISTS record_updated AFTER UPDATE ON records
BEGIN INSERT INTO changes (name) VALUES ('records:' || NEW.space); END;
CREATE TRIGGER IF NOT EXISTS record_deleted AFTER DELETE ON records
BEGIN INSERT INTO changes (name) VALUES ('records:' || OLD.space); END;
CREATE TRIGGER IF NOT EXISTS slot_inserted AFTER INSERT ON slots
BEGIN INSERT INTO changes (name) VALUES ('entry:' || NEW.fingerprint); END;
CREATE TRIGGER IF NOT EXISTS slot_updated AFTER UPDATE ON slots
BEGIN INSERT INTO changes (name) VALUES ('entry:' || NEW.fingerprint); END;
CREATE TRIGGER IF NOT EXISTS slot_deleted AFTER DELETE ON slots
BEGIN INSERT INTO changes (name) VALUES ('entry:' || OLD.fingerprint); END;
-- Of values, only those without an end: the others are too many, and none of them is kept.
CREATE TRIGGER IF NOT EXISTS value_inserted AFTER INSERT ON expiring_values
WHEN NEW.remove_after > 1e10
BEGIN INSERT INTO changes (name) VALUES ('value:' || NEW.space || ':' || NEW.name); END;
CREATE TRIGGER IF NOT EXISTS value_updated AFTER UPDATE ON expiring_values
WHEN NEW.remove_after > 1e10
BEGIN INSERT INTO changes (name) VALUES ('value:' || NEW.space || ':' || NEW.name); END;
"""
"""Tables that came later. An older gateway on the same database ignores them, so they need no new
schema version. The columns are explained in `commands.queues`."""
