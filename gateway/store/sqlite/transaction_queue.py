"""Threads that run queued work in transactions: a process has one that writes and one that reads.

Everything that is queued when a thread becomes free shares one transaction, and so one commit.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import queue
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from gateway.calendar import UTC_CALENDAR, Calendar
from gateway.errors import StoreFull, StoreUnavailable, detach
from gateway.store.sqlite.connection import connect, raising_unavailable, write_lock
from gateway.store.sqlite.steady_clock import ReadClocks
from gateway.store.sqlite.transaction import Transaction

TIMEOUT_SECONDS: Final = 2.0
"""How long a request waits for its result before the store counts as unavailable."""


@dataclass(frozen=True, slots=True, eq=False)
class _Request:
    """Work that waits for a transaction, and the future of its result."""

    work: Callable[[Transaction], Any]
    future: asyncio.Future[Any]
    is_durable: bool
    """Its commit must survive a power cut."""


@dataclass(frozen=True, slots=True, eq=False)
class _Outcome:
    """The result or the error of a request."""

    future: asyncio.Future[Any]
    result: Any = None
    error: Exception | None = None

    def deliver(self) -> None:
        """Completes the future. Runs on the event loop."""
        if self.future.done():  # the caller was cancelled or has timed out
            return
        if self.error is None:
            self.future.set_result(self.result)
        else:
            self.future.set_exception(self.error)


class TransactionQueue:
    """Runs work on a thread of its own, all that is queued in one transaction."""

    def __init__(
        self,
        db: sqlite3.Connection,
        clocks: ReadClocks,
        *,
        calendar: Calendar,
        name: str,
        write_lock_of: Path | None,
    ) -> None:
        self._db = db
        self._clocks = clocks
        self._calendar = calendar
        self._write_lock_of = write_lock_of
        self._is_synced = False  # as `connect` leaves it
        self._loop = asyncio.get_running_loop()
        self._requests: queue.SimpleQueue[_Request | None] = queue.SimpleQueue()
        # A daemon, because a thread that hangs on a disk must not keep the process from exiting.
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)

    async def run(self, work: Callable[[Transaction], Any], *, is_durable: bool = False) -> Any:
        """Runs `work` in a transaction, and returns its result or raises its exception.

        With `is_durable` it returns once the commit would survive a power cut.

        Raises `StoreUnavailable` after two seconds. Work that the thread has begun by then may
        still be committed.
        """
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                # The future is in no variable here: its error has this frame in the traceback.
                return await self.submit(work, is_durable=is_durable)
        except TimeoutError as error:
            reason = f"The embedded store did not answer within {TIMEOUT_SECONDS:.0f} s."
            raise StoreUnavailable(reason=reason) from error

    def submit(
        self, work: Callable[[Transaction], Any], *, is_durable: bool = False
    ) -> asyncio.Future[Any]:
        """As `run`, for a caller that does not wait, and without its deadline."""
        future = self._loop.create_future()
        self._requests.put(_Request(work, future, is_durable))
        return future

    def start(self) -> None:
        self._thread.start()

    async def stop(self) -> None:
        """Finishes the queued work. A thread that the kernel does not let go is left behind."""
        self._requests.put(None)
        await asyncio.to_thread(self._thread.join, TIMEOUT_SECONDS)

    def _serve(self) -> None:
        with contextlib.closing(self._db):
            stopping = False
            while not stopping:
                requests = [self._requests.get()]
                with contextlib.suppress(queue.Empty):
                    while True:
                        requests.append(self._requests.get_nowait())
                stopping = None in requests
                self._run_all([request for request in requests if request is not None])

    def _run_all(self, requests: list[_Request]) -> None:
        """Runs requests in one transaction, and delivers all outcomes after its commit."""
        awaited = _awaited(requests)
        if not awaited:
            return
        try:
            if self._write_lock_of is None:
                outcomes = self._commit(awaited, begin="BEGIN")
            else:
                with write_lock(self._write_lock_of):
                    # Again: another process may have held the lock for longer than a request waits.
                    awaited = _awaited(awaited)
                    outcomes = self._commit(awaited, begin="BEGIN IMMEDIATE") if awaited else []
        except (sqlite3.Error, OSError) as error:
            outcomes = [_Outcome(request.future, error=_as_ours(error)) for request in awaited]

        def deliver() -> None:
            for outcome in outcomes:
                outcome.deliver()

        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(deliver)

    def _commit(self, requests: list[_Request], *, begin: str) -> list[_Outcome]:
        self._sync(is_full=any(request.is_durable for request in requests))
        self._db.execute(begin)
        try:
            outcomes = [self._run_one(request) for request in requests]
            self._db.execute("COMMIT")
        finally:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
        return outcomes

    def _sync(self, *, is_full: bool) -> None:
        """Whether the next commit waits for the disk; it cannot change within a transaction."""
        if is_full != self._is_synced:
            self._db.execute(f"PRAGMA synchronous = {'FULL' if is_full else 'NORMAL'}")
            self._is_synced = is_full

    def _run_one(self, request: _Request) -> _Outcome:
        """Runs a request in a savepoint, so that its failure undoes nothing of the others."""
        self._db.execute("SAVEPOINT request")
        try:
            result = request.work(Transaction(self._db, *self._clocks(), self._calendar))
            outcome = _Outcome(request.future, result)
        except Exception as error:
            if not self._db.in_transaction:
                # On a full disk SQLite rolls back the whole transaction, savepoints included.
                raise
            self._db.execute("ROLLBACK TO request")
            outcome = _Outcome(request.future, error=_as_ours(error))
        self._db.execute("RELEASE request")
        return outcome


def _awaited(requests: list[_Request]) -> list[_Request]:
    """Work whose request has timed out or was cancelled is not begun."""
    return [request for request in requests if not request.future.done()]


def _as_ours(error: Exception) -> Exception:
    """Errors of the disk and of SQLite as `StoreFull` or `StoreUnavailable`; others unchanged."""
    if isinstance(error, OSError):
        is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    elif isinstance(error, sqlite3.Error):
        is_full = getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL
    else:
        return error
    # Not all of an `OSError`, which has a path.
    reason = error.strerror if isinstance(error, OSError) else str(error)
    reason = f"The embedded store cannot be used: {reason}."
    unavailable = StoreFull() if is_full else StoreUnavailable(reason=reason)
    unavailable.__cause__ = detach(error)
    return unavailable


@asynccontextmanager
async def open_transaction_queue(
    path: Path, clocks: ReadClocks, *, read_only: bool, calendar: Calendar = UTC_CALENDAR
) -> AsyncIterator[TransactionQueue]:
    """A queue with its thread and its connection. On leaving, the queued work is finished."""
    with raising_unavailable(path):
        db = await asyncio.to_thread(connect, path, read_only=read_only)
    transactions = TransactionQueue(
        db,
        clocks,
        calendar=calendar,
        name="sqlite-reader" if read_only else "sqlite-writer",
        write_lock_of=None if read_only else path,
    )
    try:
        transactions.start()
    except RuntimeError:  # no thread can be started, so none will close the connection
        db.close()
        raise
    try:
        yield transactions
    finally:
        await transactions.stop()
