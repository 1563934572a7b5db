"""Stores around a store: instrumented, limited, evicting.

`assembly` nests them. Each passes commands on and adds one concern; `watch` passes through.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Final

import structlog

from gateway.conditions import Condition
from gateway.errors import StoreFull, StoreUnavailable
from gateway.store.commands import Admit, Append, Heartbeat, Reserve, Settle
from gateway.store.protocol import Command, Store, Watch

log = structlog.get_logger(__name__)

WRITE_COMMANDS: Final = (Append, Heartbeat, Reserve, Settle)
"""Commands that always write."""

ROOM_SECONDS: Final = 10.0
"""Without a call that found the store full, after which it counts as having room again."""

MAX_RELIEVED: Final = 3
"""On how many full nodes of a cluster one batch makes room."""

MAX_CONCURRENT_BATCHES: Final = 128
"""The requests of so many results continue within some 20 ms of the event loop."""


class InstrumentedStore:
    """Calls `on_result(is_available)` after each batch, for metrics and health.

    `reason` says why the last batch failed, if that is known. After a failure only a batch that
    writes shows that the store is available again.
    """

    def __init__(self, store: Store, on_result: Callable[[bool], None]) -> None:
        self._store = store
        self._on_result = on_result
        self._has_failed = False
        self.reason: str | None = None
        self.name, self.kept = store.name, store.kept

    async def execute(self, commands: Sequence[Command[Any]]) -> list[Any]:
        """As `Store.execute`."""
        try:
            results = await self._store.execute(commands)
        except StoreUnavailable as error:
            self._has_failed = not isinstance(error, StoreFull)  # a full store is available
            # A queued batch that fails with another has no reason of its own.
            self.reason = error.reason or self.reason
            self._on_result(not self._has_failed)
            raise
        # SQLite can often be read although it cannot be written.
        if self._has_failed and not any(isinstance(c, WRITE_COMMANDS) for c in commands):
            return results
        self._has_failed, self.reason = False, None
        self._on_result(True)
        return results

    def watch(self, flight: str) -> AbstractAsyncContextManager[Watch]:
        """As `Store.watch`."""
        return self._store.watch(flight)


class LimitedStore:
    """Executes at most `MAX_CONCURRENT_BATCHES` batches at a time; the others queue.

    Batches queue in order, but those that admit a new request come after all others. A store
    timeout starts when a batch leaves the queue. If the store is unavailable for one batch, all
    queued batches fail.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._running = 0
        self._queue: deque[asyncio.Future[bool]] = deque()
        self._admission_queue: deque[asyncio.Future[bool]] = deque()
        """Futures of the queued batches: whether it is their turn, or the store is unavailable."""
        self.name, self.kept = store.name, store.kept

    async def execute(self, commands: Sequence[Command[Any]]) -> list[Any]:
        """As `Store.execute`."""
        if self._running < MAX_CONCURRENT_BATCHES:
            self._running += 1
        else:
            # Admissions come last, so that requests under way finish first.
            is_admission = any(isinstance(command, Admit) for command in commands)
            await self._wait_in(self._admission_queue if is_admission else self._queue)
        try:
            return await self._store.execute(commands)
        except StoreUnavailable as error:
            if not (isinstance(error, StoreFull) or error.is_partial):
                # Otherwise each queued batch would time out in its turn.
                self._fail_queued()
            raise
        finally:
            if self._queue or self._admission_queue:
                self._start_next()
            else:
                self._running -= 1

    def watch(self, flight: str) -> AbstractAsyncContextManager[Watch]:
        """As `Store.watch`."""
        return self._store.watch(flight)

    async def _wait_in(self, queue: deque[asyncio.Future[bool]]) -> None:
        turn = asyncio.get_running_loop().create_future()
        queue.append(turn)
        try:
            is_turn = await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.result():
                self._start_next()  # cancelled in the moment of its turn, which goes to the next
            raise
        if not is_turn:
            raise StoreUnavailable

    def _start_next(self) -> None:
        while queue := self._queue or self._admission_queue:
            turn = queue.popleft()
            if not turn.done():
                turn.set_result(True)  # it takes the turn of the batch that has ended
                return
        self._running -= 1

    def _fail_queued(self) -> None:
        for queue in (self._queue, self._admission_queue):
            while queue:
                turn = queue.popleft()
                if not turn.done():
                    turn.set_result(False)


class EvictingStore:
    """On `StoreFull` awaits `make_room` and executes the batch once more.

    In a cluster it does so once for each full node, at most `MAX_RELIEVED` times. `assembly` sets
    `make_room` after the cache is wired; it evicts images of the node that is full. Without it
    `StoreFull` is raised at once.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self.name, self.kept = store.name, store.kept
        self.make_room: Callable[[StoreFull], Awaitable[None]] | None = None
        self._full = Condition(
            log,
            "store_full",
            "store_has_room",
            counted="failed_calls",
            fields={"store": store.name},
        )

    async def execute(self, commands: Sequence[Command[Any]]) -> list[Any]:
        """As `Store.execute`."""
        try:
            results = await self._store.execute(commands)
        except StoreFull as full:
            results = await self._execute_with_room(commands, full)
        # A call that needs no room says nothing, so no call may have failed for a while.
        if self._full.lasts:
            self._full.ends_if_quiet(ROOM_SECONDS)
        return results

    async def _execute_with_room(
        self, commands: Sequence[Command[Any]], full: StoreFull
    ) -> list[Any]:
        relieved: set[str | None] = set()
        try:
            while True:
                if self.make_room is None or full.node in relieved or len(relieved) == MAX_RELIEVED:
                    raise full
                relieved.add(full.node)
                await self.make_room(full)
                try:
                    return await self._store.execute(commands)
                except StoreFull as another:
                    full = another
        except StoreFull:
            self._full.occurs()
            raise

    def watch(self, flight: str) -> AbstractAsyncContextManager[Watch]:
        """As `Store.watch`."""
        return self._store.watch(flight)
