"""Heartbeats of the workers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gateway.store.protocol import Verb

# ── workers ─────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Beat(Verb[None]):
    """This worker lives."""

    worker: str


@dataclass(frozen=True, slots=True)
class DeadWorkers(Verb[Sequence[str]]):
    """Workers that have neither beaten nor reserved for `after_seconds`."""

    after_seconds: float


@dataclass(frozen=True, slots=True)
class Retire(Verb[bool]):
    """Forgets a worker. False (and no change) while it holds open journals."""

    worker: str
