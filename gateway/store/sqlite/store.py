"""The embedded store: one SQLite database that all workers of one machine share.

Each process has three threads per open store: one writes, one reads, one polls for events. Nothing
is opened at import or shared across a fork: the parent creates the schema and closes the database
again, and each worker opens the store for itself. Each command in SQL is in `commands`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import structlog

from gateway.calendar import UTC_CALENDAR, Calendar
from gateway.conditions import Condition
from gateway.errors import StoreFull, StoreUnavailable
from gateway.store.commands import CompareAndSet, Reroute, Reserve, TakeTurns
from gateway.store.kept_reads import WRITERS, ReadMemory, names_written
from gateway.store.protocol import Command, KeptReads, Store, Watch
from gateway.store.sqlite.change_poller import ChangePoller, EventWatch, open_change_poller
from gateway.store.sqlite.commands import execute, is_read_only
from gateway.store.sqlite.commands.events import newest_events
from gateway.store.sqlite.connection import check_sqlite_schema, raising_unavailable
from gateway.store.sqlite.kept_reads import SqliteKeptReads
from gateway.store.sqlite.steady_clock import open_clocks, single
from gateway.store.sqlite.transaction import Transaction
from gateway.store.sqlite.transaction_queue import TransactionQueue, open_transaction_queue

log = structlog.get_logger(__name__)

DURABLE_COMMANDS: Final = (CompareAndSet, Reserve, Reroute, TakeTurns)
"""Commands that survive a power cut, with all that was committed before them.

A reservation or a turn, because then a purchase that the power cut interrupts is charged; what is
lost after it, recovery settles at the estimate. And every change of a key: a revoked one must stay
revoked.
"""


@asynccontextmanager
async def open_sqlite_store(
    path: Path,
    *,
    clock: Callable[[], float] | None = None,
    calendar: Calendar = UTC_CALENDAR,
) -> AsyncIterator[Store]:
    """Opens the database at `path`, which `create_sqlite_schema` has made.

    `clock` returns Unix seconds, in place of the machine's clock and of the steady one; `calendar`
    has the windows of limits. Raises `StoreMissing`, `SchemaMismatch`, or `StoreUnavailable` if the
    file cannot be read. On leaving, the queued commands are finished.
    """
    await asyncio.to_thread(check_sqlite_schema, path)
    with raising_unavailable(path):
        clocks = single(clock) if clock else await asyncio.to_thread(open_clocks, path)
    async with (
        open_transaction_queue(path, clocks, read_only=False, calendar=calendar) as writer,
        open_transaction_queue(path, clocks, read_only=True, calendar=calendar) as reader,
        open_change_poller(path) as poller,
    ):
        memory = ReadMemory()
        kept = SqliteKeptReads(memory, reader, clocks=clocks, start_polling=poller.keep_polling)
        poller.kept = kept
        yield _SqliteStore(path, writer, reader=reader, poller=poller, memory=memory, kept=kept)


class _SqliteStore:
    """The `Store` of a process."""

    def __init__(
        self,
        path: Path,
        writer: TransactionQueue,
        *,
        reader: TransactionQueue,
        poller: ChangePoller,
        memory: ReadMemory,
        kept: SqliteKeptReads,
    ) -> None:
        self.name = f"embedded store (SQLite) at {path}"
        self._writer = writer
        self._reader = reader
        self._poller = poller
        self._memory = memory
        self.kept: KeptReads = kept
        self._outage = Condition(
            log,
            "store_unavailable",
            "store_available",
            counted="failed_calls",
            fields={"store": self.name, "holds": "books"},
        )

    async def execute(self, commands: Sequence[Command[Any]]) -> list[Any]:
        def work(tx: Transaction) -> list[Any]:
            return [execute(tx, command) for command in commands]

        is_read = is_read_only(commands)
        transactions = self._reader if is_read else self._writer
        is_durable = any(isinstance(command, DURABLE_COMMANDS) for command in commands)
        try:
            results: list[Any] = await transactions.run(work, is_durable=is_durable)
        except StoreFull:
            raise
        except StoreUnavailable as error:
            self._outage.occurs(error.message, reason=error.reason or error.message)
            raise
        finally:
            if not (is_read or WRITERS.isdisjoint(map(type, commands))):
                # The poller will find it too. But for this worker a change holds once it is
                # answered.
                self._memory.invalidate(names_written(commands))
        # A database on a broken disk can often be read although it cannot be written.
        if self._outage.lasts and not is_read:
            self._outage.ends()
        return results

    @asynccontextmanager
    async def watch(self, flight: str) -> AsyncIterator[Watch]:
        # The newest event is read before the watch begins, so every later one wakes it.
        newest = await self._reader.run(lambda tx: newest_events(tx.db, [flight]))
        watch = EventWatch(flight, newest.get(flight, 0))
        self._poller.add(watch)
        try:
            yield watch
        finally:
            self._poller.remove(watch)
