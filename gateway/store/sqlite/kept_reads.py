"""Kept reads of the embedded store: triggers log the names that are written, and a thread polls.

The thread is `change_poller`. A change of any process is in the table `changes`; `PRAGMA
data_version` says when to read it. A kept result is used for `TRUSTED_SECONDS` after the start of
the last poll. If the thread gets no turn for longer, reads go to the database.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

from gateway.store.kept_reads import Fill, ReadMemory
from gateway.store.protocol import Command
from gateway.store.sqlite.commands import execute
from gateway.store.sqlite.steady_clock import ReadClocks
from gateway.store.sqlite.transaction_queue import TransactionQueue

TRUSTED_SECONDS: Final = 0.1


class SqliteKeptReads:
    """The `protocol.KeptReads` of a database, and the source of what is kept of it."""

    def __init__(
        self,
        memory: ReadMemory,
        reader: TransactionQueue,
        *,
        clocks: ReadClocks,
        start_polling: Callable[[], None],
    ) -> None:
        self._memory = memory
        self._reader = reader
        self._clocks = clocks
        self._start_polling = start_polling
        self._loop = asyncio.get_running_loop()
        self._polled_at = -TRUSTED_SECONDS
        self._last_change: int | None = None
        self._written: deque[str | None] = deque()
        """Names that the thread has found, for the event loop; None for all names."""

    # ── on the thread of the poller ─────────────────────────────────────────────────────────

    def poll(self, db: sqlite3.Connection, *, started_at: float, has_changed: bool) -> None:
        """Notes what was written since the last poll. Raises `sqlite3.Error`."""
        if self._last_change is None:
            (self._last_change,) = db.execute("SELECT coalesce(max(id), 0) FROM changes").fetchone()
        elif has_changed:
            last = self._last_change
            rows = db.execute("SELECT id, name FROM changes WHERE id > ?", (last,)).fetchall()
            if rows:
                # The log is bounded: some changes may be gone from it.
                is_whole = min(number for number, _ in rows) == last + 1
                self._written += {name for _, name in rows} if is_whole else [None]
                self._last_change = max(number for number, _ in rows)
                with contextlib.suppress(RuntimeError):  # the loop is closed
                    self._loop.call_soon_threadsafe(self._forget_written)
        # Last: from here on, `find` forgets what was written before this poll.
        self._polled_at = started_at

    # ── on the event loop ───────────────────────────────────────────────────────────────────

    @property
    def is_trusted(self) -> bool:
        """Whether the last poll is recent."""
        return time.monotonic() < self._polled_at + TRUSTED_SECONDS

    def now(self) -> float:
        """The machine's clock, as the commands read it."""
        return self._clocks()[0]

    def find(self, commands: Sequence[Command[Any]]) -> list[Any] | None:
        """The results, if all of them are kept and hold now."""
        # Before the next line: if the thread polls between the two after a long pause, its poll
        # must not make trusted what has not been forgotten yet.
        if not self.is_trusted:
            return None
        # Not only after the turn of `call_soon_threadsafe`.
        self._forget_written()
        return self._memory.find_all(commands)

    def fill(self, commands: Sequence[Command[Any]]) -> None:
        """Reads what is not kept yet."""
        self._start_polling()
        if not self.is_trusted:
            return
        fills = [fill for command in commands if (fill := self._memory.begin(command, self))]
        if fills:
            found = self._reader.submit(lambda tx: [execute(tx, fill.command) for fill in fills])
            found.add_done_callback(partial(self._end_fills, fills))

    def watch(self, command: Command[Any], notify: Callable[[], None]) -> None:
        """Calls `notify` when the result of `command` may have changed."""
        self._memory.watch(command, notify)

    async def find_refusal(self) -> str | None:
        """None: a database on this machine always says what changes."""
        return None

    def _end_fills(self, fills: Sequence[Fill], found: asyncio.Future[list[Any]]) -> None:
        if found.cancelled() or found.exception() is not None:
            for fill in fills:
                self._memory.end(fill)
            return
        for fill, value in zip(fills, found.result(), strict=True):
            self._memory.end(fill, value)

    def _forget_written(self) -> None:
        while self._written:
            name = self._written.popleft()
            if name is None:
                self._memory.forget(self)
            else:
                self._memory.invalidate((name,))
