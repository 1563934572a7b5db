"""The LRU index: size and last use of every blob."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from gateway.store.protocol import Command

MAX_EVICTIONS: Final = 1000
"""How many digests `Shelve`, `Shrink` and `Oldest` answer at most, so that none takes long."""


# ── the shelf: which image bytes there are, how large, and when they were last used ───────


@dataclass(frozen=True, slots=True)
class Track(Command[Sequence[str]]):
    """Puts bytes onto the shelf, or prolongs their stay, as used just now.

    What is least recently used goes until the shelf holds at most `most_bytes` or nothing but
    this: answers the digests that went, oldest first. `MOST_VICTIMS` go at most; whoever is
    answered so many asks `Shrink` for the rest. Bytes whose stay is over are no longer on the
    shelf and are not among them. The bytes themselves lie elsewhere (`BlobStore`); the caller
    removes those that went *before* it stores its own, and then the bound holds for them too.
    """

    digest: str
    size_bytes: int
    ttl_seconds: float
    max_bytes: int


@dataclass(frozen=True, slots=True)
class EvictTo(Command[Sequence[str]]):
    """As `Shelve`, putting nothing."""

    max_bytes: int


@dataclass(frozen=True, slots=True)
class Touch(Command[None]):
    """These were used just now, in this order; those that are not on the shelf stay off it.

    Needs no room: works in a store whose memory is full.
    """

    digests: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Untrack(Command[None]):
    """Takes them off the shelf. Works also where there is no room left."""

    digests: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class EvictionCandidates(Command[Sequence[str]]):
    """The least recently used that together have at least `size_bytes`, oldest first.

    `MOST_VICTIMS` at most; without what is past its time, which takes no room any more. Writes
    nothing, so that a store whose memory is full can still answer it.
    """

    size_bytes: int


@dataclass(frozen=True, slots=True)
class LruTotals:
    """How much lies on it."""

    count: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class ReadLruTotals(Command[LruTotals]):
    """How much lies on the shelf, without what is past its time."""


@dataclass(frozen=True, slots=True)
class AreTracked(Command[Sequence[bool]]):
    """Whether each of these is on the shelf, in the order asked."""

    digests: tuple[str, ...]
