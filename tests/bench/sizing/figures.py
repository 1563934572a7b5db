"""The figures of one measuring run."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

FILE = Path(__file__).with_name("measured.json")


@dataclass(frozen=True)
class Load:
    """One kind of request, sent by 16 connections to one worker. A figure is for one request."""

    per_second: float
    worker_ms: float
    """Processor time of the worker."""
    redis_ms: float
    """Processor time of Redis."""
    commands: float
    """Commands that Redis received from the worker."""
    redis_bytes: float
    """Bytes between worker and Redis, in both directions."""


@dataclass(frozen=True)
class Figures:
    """What was measured, and where."""

    date: str
    machine: str
    processors: int
    versions: str
    image_bytes: int
    """The base64 of a large image. That of a small one has 2 KB."""
    hit_kept: Load
    """A small hit from the worker's memory: its key has no `requests_per_minute`."""
    hit_small: Load
    hit_large: Load
    purchase_small: Load
    purchase_large: Load
    hit_shares: dict[str, float]
    """The share of each group of slots in the time of all commands of hits."""
    purchase_shares: dict[str, float]
    """The same of purchases."""
    purchase_memory: dict[str, float]
    """Bytes of Redis' memory that a purchase adds, by kind of key, without the image's bytes."""
    free_record_bytes: float
    """Redis' memory for the record of a hit."""
    in_flight_bytes: float
    """The worker's memory for a purchase that waits for upstream."""
    idle_bytes: int
    """The memory of a worker without requests."""
    start_seconds: float
    """From the start of the command to a worker that serves."""
    both_per_second: float
    """Purchases of two workers at full load."""
    both_redis_busy: float
    """The share of a processor that Redis used meanwhile."""
    recovery_seconds: dict[str, float]
    """The longest time without a purchase while servers change, by what happens to them."""

    @property
    def hit_books_ms(self) -> float:
        """Redis' processor time for the books, for one hit."""
        return self.hit_small.redis_ms * self.hit_shares["books"]

    @property
    def purchase_books_ms(self) -> float:
        """The same for one purchase."""
        return self.purchase_small.redis_ms * self.purchase_shares["books"]


_LOADS = ("hit_kept", "hit_small", "hit_large", "purchase_small", "purchase_large")


def load_figures(file: Path = FILE) -> Figures:
    """Reads the committed figures."""
    found = json.loads(file.read_text(encoding="utf-8"))
    return Figures(**{**found, **{name: Load(**found[name]) for name in _LOADS}})


def as_json(figures: Figures) -> str:
    """The text of `measured.json`."""
    return json.dumps(asdict(figures), indent=2) + "\n"
