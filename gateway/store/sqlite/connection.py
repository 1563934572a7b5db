"""Connections to the database, its lock, and its schema version."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from gateway.errors import StoreUnavailable
from gateway.store.handshake import SCHEMA_VERSION, SchemaMismatch, StoreMissing
from gateway.store.sqlite.schema import LAYOUTS

BUSY_SECONDS: Final = 1.0
"""How long SQLite itself waits for a lock; writers hold ours first, so this is rare."""


# ── the layout ──────────────────────────────────────────────────────────────────────────────


def create_sqlite_schema(path: Path) -> None:
    """Creates the database at `path`, and its folder (0700), unless they are there already.

    A database of an older layout is upgraded; what lies in it stays. Called once, by the parent,
    before it forks; everything is closed again. Raises `LayoutMismatch` when the database has a
    layout that is not known, `StoreUnavailable` when it cannot be written or is no database.
    """
    with _as_unavailable(path):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.touch(mode=0o600)
        with _locked(path), contextlib.closing(_connect(path)) as db:
            if 0 <= _layout_version(db) < SCHEMA_VERSION:
                _upgrade(db)
            _check_layout(db, path)


def _upgrade(db: sqlite3.Connection) -> None:
    """Tables and version in one transaction: a database is as it was, or it is complete."""
    db.execute("PRAGMA journal_mode = WAL")
    steps = "".join(LAYOUTS[_layout_version(db) :])
    db.executescript(f"BEGIN IMMEDIATE; {steps} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")


def _check_layout(db: sqlite3.Connection, path: Path) -> None:
    found = _layout_version(db)
    if found != SCHEMA_VERSION:
        raise SchemaMismatch(str(path), str(found))


def _layout_version(db: sqlite3.Connection) -> int:
    return int(db.execute("PRAGMA user_version").fetchone()[0])


def _check_store(path: Path) -> None:
    if not path.exists():
        raise StoreMissing(str(path))
    with _as_unavailable(path), contextlib.closing(_connect(path)) as db:
        _check_layout(db, path)


def _connect(path: Path) -> sqlite3.Connection:
    """A connection that one thread at a time may use; transactions are begun by hand."""
    db = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    try:
        db.execute("PRAGMA synchronous = NORMAL")
    except sqlite3.Error:  # for example, the file is not a database
        db.close()
        raise
    return db


@contextmanager
def _as_unavailable(path: Path) -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise StoreUnavailable(f"The store at {path} cannot be used: {error}.") from error


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds the lock beside the database that lets one process write at a time.

    The kernel wakes the next process at once, where SQLite's own busy handler makes it sleep
    longer and longer.
    """
    descriptor = os.open(_lock_file(path), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _lock_file(path: Path) -> Path:
    return path.with_name(f"{path.name}-lock")
