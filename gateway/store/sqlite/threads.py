"""The threads of an open database: one writes, one reads, one polls for events."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import queue
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from gateway.errors import StoreFull, StoreUnavailable
from gateway.store.sqlite.connection import _as_unavailable, _connect, _locked
from gateway.store.sqlite.events import newest_events
from gateway.store.sqlite.schema import Transaction

ANSWER_SECONDS: Final = 2.0
"""No store call is waited for longer (CONTRACT §6, *Store down*)."""

POLL_SECONDS: Final = 0.02
"""How often a watching process asks whether anybody has written."""

RECHECK_SECONDS: Final = 1.0
"""How often it looks for events even if nobody seems to have written."""


# ── lanes: a thread, a connection, and everything queued in one transaction ─────────────────


@dataclass(frozen=True, slots=True, eq=False)
class _Job:
    """A batch on its way: what to do in the transaction, and where its answer goes."""

    work: Callable[[Transaction], Any]
    future: asyncio.Future[Any]


@dataclass(frozen=True, slots=True, eq=False)
class _Outcome:
    """What became of a job."""

    future: asyncio.Future[Any]
    answer: Any = None
    error: Exception | None = None

    def deliver(self) -> None:
        """On the loop. The caller may have stopped waiting."""
        if self.future.done():
            return
        if self.error is None:
            self.future.set_result(self.answer)
        else:
            self.future.set_exception(self.error)


class _Lane:
    """One thread that puts all queued jobs into one transaction, again and again."""

    def __init__(
        self, db: sqlite3.Connection, clock: Callable[[], float], *, lock: Path | None
    ) -> None:
        self._db = db
        self._clock = clock
        self._lock = lock
        self._loop = asyncio.get_running_loop()
        self._queue: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._serve, name="sqlite-lane", daemon=True)

    async def run(self, work: Callable[[Transaction], Any]) -> Any:
        """Runs `work` in a transaction; what it answers or raises comes back."""
        future = self._loop.create_future()
        self._queue.put(_Job(work, future))
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                return await future
        except TimeoutError as error:
            raise StoreUnavailable from error

    def start(self) -> None:
        self._thread.start()

    async def stop(self) -> None:
        """Does what is queued, then ends; a thread that hangs in the kernel is left behind."""
        self._queue.put(None)
        await asyncio.to_thread(self._thread.join, ANSWER_SECONDS)

    def _serve(self) -> None:
        """The thread."""
        with contextlib.closing(self._db):
            is_open = True
            while is_open:
                taken = self._take_all()
                is_open = None not in taken
                self._run_group([job for job in taken if job is not None])

    def _take_all(self) -> list[_Job | None]:
        """Waits for one job, then takes every other that is there."""
        taken = [self._queue.get()]
        with contextlib.suppress(queue.Empty):
            while True:
                taken.append(self._queue.get_nowait())
        return taken

    def _run_group(self, jobs: list[_Job]) -> None:
        """A job whose caller has given up is not even begun; results go back all at once."""
        wanted = [job for job in jobs if not job.future.done()]
        if not wanted:
            return
        try:
            outcomes = self._transact(wanted)
        except (sqlite3.Error, OSError) as error:
            outcomes = [_Outcome(job.future, error=_unavailable(error)) for job in wanted]
        with contextlib.suppress(RuntimeError):  # the loop is gone, and with it every caller
            self._loop.call_soon_threadsafe(_deliver_all, outcomes)

    def _transact(self, jobs: list[_Job]) -> list[_Outcome]:
        if self._lock is None:
            return self._commit(jobs, "BEGIN")
        with _locked(self._lock):
            return self._commit(jobs, "BEGIN IMMEDIATE")

    def _commit(self, jobs: list[_Job], begin: str) -> list[_Outcome]:
        self._db.execute(begin)
        try:
            outcomes = [self._attempt(job) for job in jobs]
            self._db.execute("COMMIT")
        finally:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
        return outcomes

    def _attempt(self, job: _Job) -> _Outcome:
        """Runs one job so that its failure hurts no other.

        After a full disk SQLite has rolled everything back: then there is no savepoint to
        return to, and that error ends the whole group.
        """
        self._db.execute("SAVEPOINT job")
        try:
            outcome = _Outcome(job.future, job.work(Transaction(self._db, self._clock())))
        except Exception as error:
            if not self._db.in_transaction:
                raise
            self._db.execute("ROLLBACK TO job")
            outcome = _Outcome(job.future, error=_unavailable(error))
        self._db.execute("RELEASE job")
        return outcome


def _unavailable(error: Exception) -> Exception:
    """Disk and database errors become ours; a mistake in the gateway stays what it is."""
    if not isinstance(error, sqlite3.Error | OSError):
        return error
    unavailable = StoreFull() if _is_full(error) else StoreUnavailable()
    unavailable.__cause__ = error
    return unavailable


def _is_full(error: sqlite3.Error | OSError) -> bool:
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL


def _deliver_all(outcomes: list[_Outcome]) -> None:
    for outcome in outcomes:
        outcome.deliver()


@asynccontextmanager
async def _open_lane(
    path: Path, clock: Callable[[], float], *, writes: bool
) -> AsyncIterator[_Lane]:
    with _as_unavailable(path):
        db = await asyncio.to_thread(_connect, path)
    lane = _Lane(db, clock, lock=path if writes else None)
    lane.start()
    try:
        yield lane
    finally:
        await lane.stop()


# ── the lookout: who is woken, and when ─────────────────────────────────────────────────────


@dataclass(eq=False, slots=True)
class _Watch:
    """One `Watch`: the newest event it knows of, and the bell that a newer one rings."""

    flight: str
    seen: int
    bell: asyncio.Event = field(default_factory=asyncio.Event)

    async def wait(self, timeout_seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_seconds):
                await self.bell.wait()
        self.bell.clear()


class _Lookout:
    """One thread that, while anyone watches, polls for commits and rings for new events.

    A commit by any connection of any process changes `PRAGMA data_version`; only then, and
    once a second, does it ask which of the watched flights have news.
    """

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._watches: set[_Watch] = set()
        self._is_wanted = threading.Event()
        self._is_closing = False
        self._version: int | None = None
        self._looked_at = 0.0
        self._thread = threading.Thread(target=self._serve, name="sqlite-lookout", daemon=True)

    def add(self, watch: _Watch) -> None:
        """Looks at once: an event may have come since the watch read what is newest."""
        with self._lock:
            self._watches.add(watch)
            self._version = None
            self._is_wanted.set()

    def remove(self, watch: _Watch) -> None:
        with self._lock:
            self._watches.discard(watch)
            if not self._watches and not self._is_closing:
                self._is_wanted.clear()

    def start(self) -> None:
        self._thread.start()

    async def stop(self) -> None:
        with self._lock:
            self._is_closing = True
            self._is_wanted.set()
        await asyncio.to_thread(self._thread.join, ANSWER_SECONDS)

    def _serve(self) -> None:
        """The thread. An error of the database is left to those who wait: they look again."""
        with contextlib.closing(self._db):
            while self._is_wanted.wait() and not self._is_closing:
                with contextlib.suppress(sqlite3.Error):
                    self._poll()
                time.sleep(POLL_SECONDS)

    def _poll(self) -> None:
        version = self._db.execute("PRAGMA data_version").fetchone()[0]
        now = time.monotonic()
        with self._lock:
            if version == self._version and now - self._looked_at < RECHECK_SECONDS:
                return
            self._version, self._looked_at = version, now
            watches = list(self._watches)
        self._ring(watches)

    def _ring(self, watches: list[_Watch]) -> None:
        newest = newest_events(self._db, list({watch.flight for watch in watches}))
        news = [watch for watch in watches if newest.get(watch.flight, 0) > watch.seen]
        for watch in news:
            watch.seen = newest[watch.flight]
        if news:
            with contextlib.suppress(RuntimeError):  # the loop is gone
                self._loop.call_soon_threadsafe(_ring_all, news)


def _ring_all(watches: list[_Watch]) -> None:
    for watch in watches:
        watch.bell.set()


@asynccontextmanager
async def _open_lookout(path: Path) -> AsyncIterator[_Lookout]:
    with _as_unavailable(path):
        db = await asyncio.to_thread(_connect, path)
    lookout = _Lookout(db)
    lookout.start()
    try:
        yield lookout
    finally:
        await lookout.stop()
