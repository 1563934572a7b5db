"""A store that is given room: a batch that found it full is asked once more after some was made."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

from gateway.errors import StoreFull
from gateway.store.verbs import Store, Verb, Watch


class RelievedStore:
    """Passes everything on; on `StoreFull` it has `relieve` make room and asks again, once.

    `relieve` is set by whoever wires: it frees what may go, which is not known down here. Without
    it a full store stays full.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self.name = store.name
        self.relieve: Callable[[], Awaitable[None]] | None = None

    async def run(self, verbs: Sequence[Verb[Any]]) -> list[Any]:
        """As the store does."""
        try:
            return await self._store.run(verbs)
        except StoreFull:
            if self.relieve is None:
                raise
        await self.relieve()
        return await self._store.run(verbs)

    def watch(self, flight: str) -> AbstractAsyncContextManager[Watch]:
        """As the store does."""
        return self._store.watch(flight)
