"""The events of a flight."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gateway.store.protocol import Command

# ── flights: the small events of a purchase under way ───────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Publish(Command[None]):
    """Appends an event to a flight and wakes everyone who watches it.

    `event_id` makes it repeatable: a second event of the same id in one flight is dropped.
    The flight's events live `lifetime_seconds` from the last one.
    """

    flight: str
    event_id: str
    event: bytes
    ttl_seconds: float


@dataclass(frozen=True, slots=True)
class ReadEvents(Command[Sequence[bytes]]):
    """The events of a flight in order, from index `after` (0 = all)."""

    flight: str
    after: int = 0
