"""A store that says how it is: every batch tells whether it was answered."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

from gateway.errors import StoreFull, StoreUnavailable
from gateway.store.verbs import Store, Verb, Watch


class CountedStore:
    """Passes everything on, and calls `tell(was_answered)` after each batch."""

    def __init__(self, store: Store, tell: Callable[[bool], None]) -> None:
        self._store = store
        self._tell = tell
        self.name = store.name

    async def run(self, verbs: Sequence[Verb[Any]]) -> list[Any]:
        """As the store does."""
        try:
            answers = await self._store.run(verbs)
        except StoreUnavailable as error:
            self._tell(isinstance(error, StoreFull))  # whoever says that it is full, is there
            raise
        self._tell(True)
        return answers

    def watch(self, flight: str) -> AbstractAsyncContextManager[Watch]:
        """As the store does."""
        return self._store.watch(flight)
