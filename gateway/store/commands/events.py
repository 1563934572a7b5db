"""The events of a flight: small messages from its leader to its followers."""

from __future__ import annotations

from collections.abc import Sequence

from gateway.frozen import frozen
from gateway.store.protocol import Command


@frozen
class Publish(Command[None]):
    """Appends an event to a flight and notifies every watch of it.

    `event_id` makes it repeatable: a second event with the same id in one flight is dropped.
    All events of the flight are deleted `ttl_seconds` after the last one was published.
    """

    flight: str
    event_id: str
    event: bytes
    ttl_seconds: float


@frozen
class Notify(Command[None]):
    """Notifies every watch of `flight`, without an event. Stores at most one notification."""

    flight: str


@frozen
class ReadEvents(Command[Sequence[bytes]]):
    """The events of a flight in order, from index `after` on (0: all)."""

    flight: str
    after: int = 0
