"""Heartbeats of the workers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gateway.store.protocol import Command

# ── workers ─────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Heartbeat(Command[None]):
    """This worker lives."""

    worker: str


@dataclass(frozen=True, slots=True)
class ExpiredWorkers(Command[Sequence[str]]):
    """Workers that have neither beaten nor reserved for `after_seconds`."""

    after_seconds: float


@dataclass(frozen=True, slots=True)
class Deregister(Command[bool]):
    """Forgets a worker. False (and no change) while it holds open journals."""

    worker: str
