"""Finds what other processes commit: SQLite has no notifications, so a thread polls.

It wakes the watches of flights, and reports to `kept_reads` what was written.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

from gateway.store.sqlite.commands.events import newest_events
from gateway.store.sqlite.connection import connect, raising_unavailable

POLL_SECONDS: Final = 0.02
"""The pause between two looks at `PRAGMA data_version`."""

IDLE_POLL_SECONDS: Final = 0.04
"""The same while no flight is watched, and only for what is kept."""

RECHECK_SECONDS: Final = 1.0
"""The events are read at least this often, even if no commit was seen."""

STOP_SECONDS: Final = 2.0
"""How long `stop` waits for the thread."""


@dataclass(eq=False, slots=True)
class EventWatch:
    """A `Watch` of one flight."""

    flight: str
    newest: int
    """The id of the newest event that the watch was notified of."""
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def wait(self, timeout_seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_seconds):
                await self._changed.wait()
        self._changed.clear()

    def notify(self) -> None:
        """Ends the wait, or the next one. Runs on the event loop."""
        self._changed.set()


class PolledReads(Protocol):
    """Reads that hold until a poll finds that they have changed."""

    def poll(self, db: sqlite3.Connection, *, started_at: float, has_changed: bool) -> None: ...


class ChangePoller:
    """A thread that polls for commits while there are watches, or anything is kept.

    A commit by any other connection, of any process, changes `PRAGMA data_version`. Only then,
    and once a second, the poller reads the newest events of the watched flights.
    """

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._watches: set[EventWatch] = set()
        self._should_run = threading.Event()
        self._is_stopping = False
        self._data_version: int | None = None
        self._checked_at = 0.0
        self._kept_version: int | None = None
        self.kept: PolledReads | None = None
        """Told of each poll, from the first `keep_polling` on."""
        self._always_polls = False
        # A daemon, because a thread that hangs on a disk must not keep the process from exiting.
        self._thread = threading.Thread(target=self._serve, name="sqlite-poller", daemon=True)

    def add(self, watch: EventWatch) -> None:
        with self._lock:
            self._watches.add(watch)
            # Events may have come since the watch read its newest one: check without a commit.
            self._data_version = None
            self._should_run.set()

    def remove(self, watch: EventWatch) -> None:
        with self._lock:
            self._watches.discard(watch)
            # While the poller stops, the event stays set: otherwise the thread would wait for ever.
            if not (self._watches or self._always_polls or self._is_stopping):
                self._should_run.clear()

    def keep_polling(self) -> None:
        """Polls from now on, also without watches."""
        if not self._always_polls:
            with self._lock:
                self._always_polls = True
                self._should_run.set()

    def start(self) -> None:
        self._thread.start()

    async def stop(self) -> None:
        with self._lock:
            self._is_stopping = True
            self._should_run.set()
        await asyncio.to_thread(self._thread.join, STOP_SECONDS)

    def _serve(self) -> None:
        with contextlib.closing(self._db):
            while self._should_run.wait() and not self._is_stopping:
                # After an error the watches time out, and their owners read the events anyway.
                with contextlib.suppress(sqlite3.Error):
                    self._poll()
                time.sleep(POLL_SECONDS if self._watches else IDLE_POLL_SECONDS)

    def _poll(self) -> None:
        now = time.monotonic()
        data_version = self._db.execute("PRAGMA data_version").fetchone()[0]
        if self._always_polls and self.kept is not None:
            has_changed = data_version != self._kept_version
            self.kept.poll(self._db, started_at=now, has_changed=has_changed)
            self._kept_version = data_version  # after it: a poll that failed is repeated
        with self._lock:
            if data_version == self._data_version and now - self._checked_at < RECHECK_SECONDS:
                return
            self._data_version, self._checked_at = data_version, now
            watches = list(self._watches)
        if not watches:
            return
        newest = newest_events(self._db, list({watch.flight for watch in watches}))
        behind = [watch for watch in watches if newest.get(watch.flight, 0) > watch.newest]
        if not behind:
            return
        for watch in behind:
            watch.newest = newest[watch.flight]

        def notify_all() -> None:
            for watch in behind:
                watch.notify()

        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(notify_all)


@asynccontextmanager
async def open_change_poller(path: Path) -> AsyncIterator[ChangePoller]:
    """A poller with its thread and its connection."""
    with raising_unavailable(path):
        db = await asyncio.to_thread(connect, path, read_only=True)
    poller = ChangePoller(db)
    try:
        poller.start()
    except RuntimeError:  # no thread can be started, so none will close the connection
        db.close()
        raise
    try:
        yield poller
    finally:
        await poller.stop()
