"""A store that says how it is: every batch tells whether it was answered.

An embedded store that cannot be written may still be read. So what was read well says nothing of a
store that has failed: it is back when it has kept something, as it does with every heartbeat.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Final

from gateway.errors import StoreFull, StoreUnavailable
from gateway.store.verbs import Append, Beat, Reserve, Settle, Store, Verb, Watch

KEEPING: Final = (Append, Beat, Reserve, Settle)
"""Verbs that always write."""


class CountedStore:
    """Passes everything on, and calls `tell(was_answered)` after each batch."""

    def __init__(self, store: Store, tell: Callable[[bool], None]) -> None:
        self._store = store
        self._tell = tell
        self._has_failed = False
        self.name = store.name

    async def run(self, verbs: Sequence[Verb[Any]]) -> list[Any]:
        """As the store does."""
        try:
            answers = await self._store.run(verbs)
        except StoreUnavailable as error:
            self._has_failed = not isinstance(error, StoreFull)  # who says it is full, is there
            self._tell(not self._has_failed)
            raise
        if self._has_failed and not any(isinstance(verb, KEEPING) for verb in verbs):
            return answers
        self._has_failed = False
        self._tell(True)
        return answers

    def watch(self, flight: str) -> AbstractAsyncContextManager[Watch]:
        """As the store does."""
        return self._store.watch(flight)
