"""The store itself: its configuration, and the removal of expired data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gateway.store.protocol import Command


@dataclass(frozen=True, slots=True)
class Sweep(Command[int]):
    """Deletes up to `limit` expired items and returns how many there were.

    Redis expires its keys itself; there only the LRU index is swept.
    """

    limit: int = 1000


@dataclass(frozen=True, slots=True)
class StoreFacts:
    """The configuration of a store."""

    kind: Literal["sqlite", "redis"]
    now: float
    """The store's time in Unix seconds."""
    eviction_policy: str | None
    """Redis' `maxmemory-policy`; None: the store never evicts by itself."""
    maxmemory_bytes: int | None
    """None: no limit."""
    is_durable: bool
    """Whether acknowledged changes survive a restart; a power cut may lose the last ones."""
    is_known: bool = True
    """False: Redis' ACL forbids INFO, so the three before are not known."""
    needs_replica: bool = False
    """Whether a Redis refuses writes while no replica follows it (`min-replicas-to-write`)."""


@dataclass(frozen=True, slots=True)
class StoreUse:
    """How much of its memory or disk a store uses."""

    kind: Literal["memory", "disk"]
    used_bytes: int
    """Of Redis all of its data, of an embedded store its file."""
    capacity_bytes: int
    """Redis' `maxmemory`, without one the memory of its machine; of a disk, used and free."""


@dataclass(frozen=True, slots=True)
class MeasureStore(Command[StoreUse]):
    """Measures the store, in a time that does not depend on its size. Works in a full store."""


@dataclass(frozen=True, slots=True)
class Inspect(Command[StoreFacts]):
    """Reads the configuration. Writes nothing, so it also works in a full store."""
