-- A database as the gateway of layout 1 left it (a dump of it), with its stamp.
BEGIN TRANSACTION;
CREATE TABLE appends (batch_id TEXT PRIMARY KEY, gone_at REAL NOT NULL);
INSERT INTO "appends" VALUES('batch',1767229200.0);
CREATE TABLE buckets (
    scope TEXT NOT NULL, unit TEXT NOT NULL,
    level INTEGER NOT NULL, at INTEGER NOT NULL, gone_at REAL NOT NULL,
    PRIMARY KEY (scope, unit)
);
CREATE TABLE claims (
    fingerprint TEXT NOT NULL, slot INTEGER NOT NULL, flight TEXT NOT NULL, gone_at REAL NOT NULL,
    PRIMARY KEY (fingerprint, slot)
);
CREATE TABLE events (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    flight TEXT NOT NULL, event_id TEXT NOT NULL, event BLOB NOT NULL, gone_at REAL NOT NULL,
    UNIQUE (flight, event_id)
);
CREATE TABLE journals (
    purchase TEXT PRIMARY KEY, worker TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('reserved', 'received', 'settled')),
    payload BLOB NOT NULL, takes TEXT NOT NULL, charge TEXT NOT NULL, presumed INTEGER NOT NULL,
    gone_at REAL NOT NULL
);
INSERT INTO "journals" VALUES('open','w','reserved',X'7061796C6F6164','[["key:k", "images", "month", 10, 2, "2026-01"]]','{}',0,9e999);
INSERT INTO "journals" VALUES('closed','w','settled',X'','[["key:k", "images", "month", 10, 1, "2026-01"]]','{"images": 1}',0,1767830400.0);
CREATE TABLE ledger (
    position INTEGER PRIMARY KEY AUTOINCREMENT, day TEXT NOT NULL, record BLOB NOT NULL
);
INSERT INTO "ledger" VALUES(1,'2026-01-01',X'626F75676874');
INSERT INTO "ledger" VALUES(2,'2026-01-01',X'686974');
CREATE TABLE records (
    space TEXT NOT NULL, name TEXT NOT NULL, value BLOB NOT NULL,
    PRIMARY KEY (space, name)
);
INSERT INTO "records" VALUES('keys','k',X'7265636F7264');
CREATE TABLE slots (
    fingerprint TEXT NOT NULL, slot INTEGER NOT NULL,
    image TEXT NOT NULL, expires_at REAL NOT NULL, data BLOB NOT NULL, gone_at REAL NOT NULL,
    PRIMARY KEY (fingerprint, slot)
);
INSERT INTO "slots" VALUES('f',0,'p',4767225600.0,X'64617461',4767225660.0);
CREATE TABLE windows (
    scope TEXT NOT NULL, unit TEXT NOT NULL, period TEXT NOT NULL, label TEXT NOT NULL,
    spent INTEGER NOT NULL, reserved INTEGER NOT NULL, gone_at REAL NOT NULL,
    PRIMARY KEY (scope, unit, period, label)
);
INSERT INTO "windows" VALUES('key:k','images','month','2026-01',1,2,1770508800.0);
CREATE TABLE workers (worker TEXT PRIMARY KEY, beat_at REAL NOT NULL);
INSERT INTO "workers" VALUES('w',1767225600.0);
CREATE INDEX slots_gone ON slots (gone_at);
CREATE INDEX claims_gone ON claims (gone_at);
CREATE INDEX events_order ON events (flight, id);
CREATE INDEX events_gone ON events (gone_at);
CREATE INDEX journals_open ON journals (worker) WHERE state != 'settled';
CREATE INDEX journals_gone ON journals (gone_at);
CREATE INDEX ledger_days ON ledger (day);
CREATE INDEX appends_gone ON appends (gone_at);
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('ledger',2);
COMMIT;
PRAGMA user_version = 1;
