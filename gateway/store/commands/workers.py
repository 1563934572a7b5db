"""Heartbeats of the workers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gateway.store.protocol import Command


@dataclass(frozen=True, slots=True)
class Heartbeat(Command[Sequence[str]]):
    """Records that the worker is alive; returns what `ExpiredWorkers` would have returned before.

    Without `expired_after_seconds` it returns no workers.
    """

    worker: str
    expired_after_seconds: float | None = None
    limit: int = 100


@dataclass(frozen=True, slots=True)
class ExpiredWorkers(Command[Sequence[str]]):
    """Up to `limit` workers without a heartbeat or a reservation for `after_seconds`."""

    after_seconds: float
    limit: int = 100


@dataclass(frozen=True, slots=True)
class Deregister(Command[bool]):
    """Removes a worker. False, and no change, while it has open journals."""

    worker: str
