"""Tags: the fingerprints of the entries that a purge by tag empties.

A tag is a client's own word, and costs nothing. So it is stored only once its entry has an image,
and a gateway key has a bound: for one entry, and for all entries together. A tag lives as long as
an entry can, and then makes room for another one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Final

from gateway.store.batch import Batch, execute
from gateway.store.commands import AddToBoundedSets, AddToSet, BoundedSet
from gateway.store.protocol import Store

SPACE: Final = "tags"
"""The space of sets of fingerprints, by tag, which `purges` reads; and of the bounded sets."""

MAX_ENTRY_TAGS: Final = 64
"""Tags of one entry, by one gateway key."""

MAX_KEY_TAGS: Final = 10_000
"""Tags of all entries, by one gateway key, each counted once for each entry."""


class Tags:
    """Stores the tags of entries."""

    def __init__(self, store: Store, *, ttl_seconds: float) -> None:
        self._store = store
        self._ttl_seconds = ttl_seconds

    async def reserve(self, key_id: str, fingerprint: str, tags: Sequence[str]) -> Sequence[str]:
        """Those of the tags that the key has room for. Raises `StoreUnavailable`."""
        if not tags:
            return ()
        bounds = (
            BoundedSet(SPACE, f"{key_id} {fingerprint}", MAX_ENTRY_TAGS),
            BoundedSet(SPACE, key_id, MAX_KEY_TAGS),
        )
        by_member = {_member(fingerprint, tag): tag for tag in tags}
        command = AddToBoundedSets(bounds, tuple(by_member), self._ttl_seconds)
        return [by_member[member] for member in await execute(self._store, command)]

    def add(self, batch: Batch, fingerprint: str, tags: Iterable[str]) -> None:
        """Adds an entry to tags that were reserved, for as long as the entry may exist."""
        for tag in tags:
            batch.add(AddToSet(SPACE, tag, (fingerprint,), self._ttl_seconds))


def _member(fingerprint: str, tag: str) -> str:
    """A tag of an entry in the bounded sets: short, because they hold thousands of them."""
    return hashlib.sha256(f"{fingerprint} {tag}".encode()).hexdigest()[:32]
