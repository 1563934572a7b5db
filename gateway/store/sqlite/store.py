"""The embedded store: one SQLite database that all workers of one machine share."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

from gateway.store.protocol import Command, Store, Watch
from gateway.store.sqlite.commands import is_reading, perform
from gateway.store.sqlite.connection import _check_store
from gateway.store.sqlite.events import newest_events
from gateway.store.sqlite.threads import _Lane, _Lookout, _open_lane, _open_lookout, _Watch

# ── opening ─────────────────────────────────────────────────────────────────────────────────


@asynccontextmanager
async def open_sqlite_store(
    path: Path, *, clock: Callable[[], float] = time.time
) -> AsyncIterator[Store]:
    """Opens the database at `path`, which `create_sqlite_layout` has made.

    `clock` answers Unix seconds. Raises `StoreMissing`, `LayoutMismatch`, or `StoreUnavailable`
    when the file cannot be read. On leaving, what was asked before is still done.
    """
    await asyncio.to_thread(_check_store, path)
    async with contextlib.AsyncExitStack() as stack:
        writer = await stack.enter_async_context(_open_lane(path, clock, writes=True))
        reader = await stack.enter_async_context(_open_lane(path, clock, writes=False))
        lookout = await stack.enter_async_context(_open_lookout(path))
        yield _SqliteStore(path, writer, reader=reader, lookout=lookout)


class _SqliteStore:
    """The `Store` that a process shares: hands each batch to its lane and waits at most 2 s."""

    def __init__(self, path: Path, writer: _Lane, *, reader: _Lane, lookout: _Lookout) -> None:
        self.name = f"embedded store (SQLite) at {path}"
        self._writer = writer
        self._reader = reader
        self._lookout = lookout

    async def execute(self, commands: Sequence[Command[Any]]) -> list[Any]:
        lane = self._reader if is_reading(commands) else self._writer
        answers: list[Any] = await lane.run(
            lambda tx: [perform(tx, command) for command in commands]
        )
        return answers

    def watch(self, flight: str) -> AbstractAsyncContextManager[Watch]:
        return self._watch(flight)

    @asynccontextmanager
    async def _watch(self, flight: str) -> AsyncIterator[Watch]:
        """The newest event is read before the watch begins, so what comes later wakes it."""
        newest = await self._reader.run(lambda tx: newest_events(tx.db, [flight]))
        watch = _Watch(flight, newest.get(flight, 0))
        self._lookout.add(watch)
        try:
            yield watch
        finally:
            self._lookout.remove(watch)
