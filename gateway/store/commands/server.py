"""The store itself: what it says of its set-up, and the removal of expired rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gateway.store.protocol import Command


@dataclass(frozen=True, slots=True)
class Sweep(Command[int]):
    """Removes up to `limit` things whose time is over; answers how many.

    Redis does it itself for all but the shelf.
    """

    limit: int = 1000


# ── the store itself ────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class StoreFacts:
    """What a store says of itself."""

    kind: Literal["sqlite", "redis"]
    now: float
    """Its clock."""
    eviction_policy: str | None
    """What it does when its memory is full, in Redis' words; None: it evicts nothing of itself."""
    maxmemory_bytes: int | None
    """The most it may hold; None: as much as there is room."""
    is_durable: bool
    """Whether it writes every change to disk."""


@dataclass(frozen=True, slots=True)
class Inspect(Command[StoreFacts]):
    """How the store is set up. Writes nothing, so that a full one answers too."""
