"""The LRU index: size, last use and expiry of every blob.

It holds no bytes, those are in a `BlobStore`. An expired digest stays in the index until a command
that evicts, or a `Sweep`, removes it: each removes only some, so that no command takes longer the
more have expired. Until then its bytes count.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, Literal, TypeAlias

from gateway.frozen import frozen
from gateway.store.protocol import Command

MAX_EVICTIONS: Final = 1000
"""The most digests that one command evicts or returns, so that none takes long."""

LruIndex: TypeAlias = Literal["images", "partials"]
"""There are two, which share nothing: of images, and of partial images (ephemeral blobs)."""


@frozen
class Track(Command[Sequence[str]]):
    """Adds a digest as used just now, or extends its time to live.

    Removes up to `MAX_EVICTIONS` expired digests. Then evicts the least recently used ones, up to
    `MAX_EVICTIONS`, until the index holds at most `max_bytes` or only this digest. Returns the
    evicted digests, oldest first; if there are `MAX_EVICTIONS` of them, `EvictTo` evicts the rest.
    Delete their bytes *before* storing new ones, so that the bound holds for the blobs too.
    """

    digest: str
    size_bytes: int
    ttl_seconds: float
    max_bytes: int
    index: LruIndex = "images"


@frozen
class EvictTo(Command[Sequence[str]]):
    """Evicts as `Track` does, without adding a digest."""

    max_bytes: int
    index: LruIndex = "images"


@frozen
class Touch(Command[None]):
    """Marks digests as used just now, in this order; untracked ones stay untracked.

    Also works in a full store.
    """

    digests: tuple[str, ...]


@frozen
class Untrack(Command[None]):
    """Removes digests. Also works in a full store."""

    digests: tuple[str, ...]


@frozen
class EvictionCandidates(Command[Mapping[str, int]]):
    """The least recently used digests that together have at least `size_bytes`, oldest first.

    Returns at most `MAX_EVICTIONS` digests, each with its bytes. Leaves out the `skip` oldest ones.
    Writes nothing, so it also works in a full store.
    """

    size_bytes: int
    skip: int = 0


@frozen
class LruTotals:
    """The number of digests in the index and their bytes, with expired ones not yet removed."""

    count: int
    size_bytes: int


@frozen
class ReadLruTotals(Command[LruTotals]):
    """Reads the totals of the index of images."""


@frozen
class AreTracked(Command[Sequence[bool]]):
    """Whether each digest is tracked and has not expired, in their order."""

    digests: tuple[str, ...]
