"""A store that is asked by so many at once; the rest stand in line.

When thousands of requests come at the same moment, the answers to all of them would come at the
same moment too, and the event loop would stand still until it had gone through them. By then the
deadline of the next batches would be over: a busy worker would believe that the store is away. In
line nobody's deadline runs, and nobody stands there when the store does not answer.

Whoever is not yet admitted stands behind everybody else: what was begun is brought to its end,
before a claim is over or a worker's heartbeat late.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Final

from gateway.errors import StoreFull, StoreUnavailable
from gateway.store.verbs import Admit, Store, Verb, Watch

MOST_AT_ONCE: Final = 128
"""Going on with so many requests takes some 20 ms."""


class QueuedStore:
    """Passes everything on, `MOST_AT_ONCE` batches at a time; admissions wait for all others.

    A batch that ends in `StoreUnavailable` ends so for all who stand in line.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._asking = 0
        self._line: deque[asyncio.Future[None]] = deque()
        self._newcomers: deque[asyncio.Future[None]] = deque()
        self.name = store.name

    async def run(self, verbs: Sequence[Verb[Any]]) -> list[Any]:
        """As the store does."""
        if self._asking < MOST_AT_ONCE:
            self._asking += 1
        else:
            is_new = any(isinstance(verb, Admit) for verb in verbs)
            await self._stand_in(self._newcomers if is_new else self._line)
        try:
            return await self._store.run(verbs)
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
