"""Connections to the database, its schema version, and the lock of its writers."""

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
from gateway.store.private_files import PRIVATE_FILE, create_private_folder, make_private
from gateway.store.sqlite.schema import ADDED_TABLES, SCHEMA

BUSY_SECONDS: Final = 1.0
"""How long SQLite itself waits for a lock. Rarely needed, as writers take `write_lock` first."""


def create_sqlite_schema(path: Path) -> None:
    """Creates the database at `path` (0600), and its folder (0700), if they do not exist yet.

    The parent process calls this before it forks; no connection stays open. Raises
    `SchemaMismatch` if the database has another schema version, `StoreUnavailable` if it cannot
    be written or is no database.
    """
    with raising_unavailable(path):
        create_private_folder(path.parent)
        # SQLite would create the file with the rights that the umask leaves. It gives the files
        # beside it (-wal, -shm) the same rights, but does not change those of existing ones.
        path.touch(PRIVATE_FILE)
        for file in (path, *path.parent.glob(f"{path.name}-*")):
            # Another process may have closed the database, or another user may own the file.
            with contextlib.suppress(FileNotFoundError, PermissionError):
                make_private(file)
        with write_lock(path), contextlib.closing(connect(path)) as db:
            if _schema_version(db) == 0:  # an empty database
                db.execute("PRAGMA journal_mode = WAL")
                # Tables and version in one transaction: a crash leaves the database empty.
                db.executescript(
                    f"BEGIN IMMEDIATE; {SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;"
                )
            _check_schema(db, path)
            db.executescript(ADDED_TABLES)


def check_sqlite_schema(path: Path) -> None:
    """Raises `StoreMissing`, `SchemaMismatch` or `StoreUnavailable` unless `path` can be opened."""
    with raising_unavailable(path):
        # Another user's folder may forbid even that.
        if not path.exists():
            raise StoreMissing(str(path))
        with contextlib.closing(connect(path)) as db:
            _check_schema(db, path)
            # Of an older gateway that is still running; another user may not write them.
            with contextlib.suppress(sqlite3.OperationalError):
                db.executescript(ADDED_TABLES)


def _check_schema(db: sqlite3.Connection, path: Path) -> None:
    found = _schema_version(db)
    if found != SCHEMA_VERSION:
        raise SchemaMismatch(str(path), str(found))


def _schema_version(db: sqlite3.Connection) -> int:
    return int(db.execute("PRAGMA user_version").fetchone()[0])


def connect(path: Path, *, read_only: bool = False) -> sqlite3.Connection:
    """A connection that any one thread at a time may use. It begins no transactions by itself."""
    db = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    try:
        # With a write-ahead log, NORMAL survives a crash of the process. A power cut may lose the
        # last commits, but does not damage the database. `TransactionQueue` raises it to FULL for
        # commits that must survive one too.
        db.execute("PRAGMA synchronous = NORMAL")
        # Or a full disk of temporary files would refuse writes, as if the store were full.
        db.execute("PRAGMA temp_store = MEMORY")
        if read_only:
            db.execute("PRAGMA query_only = ON")
    except sqlite3.Error:  # for example, the file is not a database
        db.close()
        raise
    return db


@contextmanager
def raising_unavailable(path: Path) -> Iterator[None]:
    """Turns errors of the disk and of SQLite into `StoreUnavailable`, which names the path."""
    try:
        yield
    except PermissionError as error:
        raise StoreUnavailable(
            f"The store at {path} cannot be used: {error.strerror}. Run this as the user of the "
            "gateway, or set GATEWAY_DATA_DIR to a folder of this user's."
        ) from error
    except (sqlite3.Error, OSError) as error:
        raise StoreUnavailable(f"The store at {path} cannot be used: {error}.") from error


@contextmanager
def write_lock(path: Path) -> Iterator[None]:
    """Waits for the lock that one writing process at a time has: `flock` on a file of its own."""
    # The kernel wakes the next process at once. SQLite's own busy handler sleeps between its
    # attempts, longer each time.
    lock_file = path.with_name(f"{path.name}-lock")
    descriptor = os.open(lock_file, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, PRIVATE_FILE)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
