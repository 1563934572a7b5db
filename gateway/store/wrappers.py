"""Stores around a store: instrumented, limited, evicting."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Final

from gateway.errors import StoreFull, StoreUnavailable
from gateway.store.commands import Admit, Append, Heartbeat, Reserve, Settle
from gateway.store.protocol import Command, Store, Watch

KEEPING: Final = (Append, Heartbeat, Reserve, Settle)
"""Verbs that always write."""


class InstrumentedStore:
    """Passes everything on, and calls `tell(was_answered)` after each batch."""

    def __init__(self, store: Store, tell: Callable[[bool], None]) -> None:
        self._store = store
        self._tell = tell
        self._has_failed = False
        self.name = store.name

    async def execute(self, commands: Sequence[Command[Any]]) -> list[Any]:
        """As the store does."""
        try:
            answers = await self._store.execute(commands)
        except StoreUnavailable as error:
            self._has_failed = not isinstance(error, StoreFull)  # who says it is full, is there
            self._tell(not self._has_failed)
            raise
        if self._has_failed and not any(isinstance(command, KEEPING) for command in commands):
            return answers
        self._has_failed = False
        self._tell(True)
        return answers

    def watch(self, flight: str) -> AbstractAsyncContextManager[Watch]:
        """As the store does."""
        return self._store.watch(flight)


MAX_AT_ONCE: Final = 128
"""Going on with so many requests takes some 20 ms."""


class LimitedStore:
    """Passes everything on, `MOST_AT_ONCE` batches at a time; admissions wait for all others.

    A batch that ends in `StoreUnavailable` ends so for all who stand in line.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._asking = 0
        self._line: deque[asyncio.Future[None]] = deque()
        self._newcomers: deque[asyncio.Future[None]] = deque()
        self.name = store.name

    async def execute(self, commands: Sequence[Command[Any]]) -> list[Any]:
        """As the store does."""
        if self._asking < MAX_AT_ONCE:
            self._asking += 1
        else:
            only_if_absent = any(isinstance(command, Admit) for command in commands)
            await self._stand_in(self._newcomers if only_if_absent else self._line)
        try:
            return await self._store.execute(commands)
        except StoreUnavailable as error:
            if not isinstance(error, StoreFull):
                self._send_away()
            raise
        finally:
            self._let_in()

    def watch(self, flight: str) -> AbstractAsyncContextManager[Watch]:
        """As the store does."""
        return self._store.watch(flight)

    async def _stand_in(self, line: deque[asyncio.Future[None]]) -> None:
        turn = asyncio.get_running_loop().create_future()
        line.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self._let_in()  # its turn had come just then
            raise

    def _let_in(self) -> None:
        """A place is free: it goes to the first who still stands in line."""
        while line := self._line or self._newcomers:
            turn = line.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._asking -= 1

    def _send_away(self) -> None:
        for line in (self._line, self._newcomers):
            while line:
                turn = line.popleft()
                if not turn.done():
                    turn.set_exception(StoreUnavailable())


class EvictingStore:
    """Passes everything on; on `StoreFull` it has `relieve` make room and asks again, once.

    `relieve` is set by whoever wires: it frees what may go, which is not known down here. Without
    it a full store stays full.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self.name = store.name
        self.make_room: Callable[[], Awaitable[None]] | None = None

    async def execute(self, commands: Sequence[Command[Any]]) -> list[Any]:
        """As the store does."""
        try:
            return await self._store.execute(commands)
        except StoreFull:
            if self.make_room is None:
                raise
        await self.make_room()
        return await self._store.execute(commands)

    def watch(self, flight: str) -> AbstractAsyncContextManager[Watch]:
        """As the store does."""
        return self._store.watch(flight)
